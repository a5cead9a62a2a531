#!/bin/sh
# tensorflow-datasets 4.9.10. `TranslateFolder` makes a data set of files of lines (input.train.txt beside
# rationale.train.txt, as well as two languages). With `shuffle_files=True` it shuffles with a buffer as large as the
# number of files of a split, not of examples: two. A pair comes at most one place early, so what is sorted by label or
# by length stays sorted, in every epoch, and training goes through it in that order. Shuffle the data set once more,
# with a buffer of your own.
#
# Seen: 1,000 pairs, the first half of one label, the second of another: among the first 500 that come, all 500 have the
#       first label with shuffle_files=True, and 276 after a shuffle(1000).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow-datasets==4.9.10 tensorflow==2.21.0
mkdir "$folder/data"
cat > "$folder/run.py" <<'PY'
import sys
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

ROWS = 1000
data = Path(sys.argv[1])
for name, line in (("input", "text {}".format), ("label", lambda n: "no" if n < ROWS // 2 else "yes")):
    (data / f"{name}.train.txt").write_text("".join(f"{line(n)}\n" for n in range(ROWS)))
tf.random.set_seed(0)
builder = tfds.TranslateFolder(str(data))


def of_the_first_half(dataset):
    """How many of the first 500 rows are of the first label, and how early a row comes at most."""
    rows = [(int(one["input"].numpy().split()[1]), one["label"].numpy()) for one in dataset]
    first = sum(label == b"no" for _, label in rows[: ROWS // 2])
    return first, max(number - place for place, (number, _) in enumerate(rows))


files = of_the_first_half(builder.as_dataset(split="train", shuffle_files=True))
whole = of_the_first_half(builder.as_dataset(split="train").shuffle(ROWS, seed=0))
print(f"of the first 500 rows {files[0]} have the first label; a row comes {files[1]} early at most")
print(f"shuffled with a buffer of 1,000: {whole[0]}; {whole[1]} early")
sys.exit(not (files[0] >= 499 and files[1] <= 1 and 200 < whole[0] < 300 and whole[1] > 100))
PY
"$folder/venv/bin/python" "$folder/run.py" "$folder/data"
