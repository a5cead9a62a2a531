#!/bin/sh
# datasets 5.2.0. `ClassLabel(names=["1", "2", "3", "4", "5"])`, stars, on one CSV file. Given to `load_dataset` as
# `features`, a cell is a name: "1" is class 0. Given to `cast_column` after loading, the cell is a number by
# then, and a number is an index: 1 is class 1, whose name is "2". So all labels are one star too high, and no
# word is said unless some row has 5. And a text that is no name is taken for an index too: "0", no stars in
# many a table, becomes class 0, "1". Only what is no index either is an error.
#
# Seen: stars 1 2 3 4: as features 1 2 3 4, cast 2 3 4 5. stars 0 1 2 3: as features 1 1 2 3, cast 1 2 3 4.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cat > "$folder/run.py" <<'PY'
import sys
from pathlib import Path

from datasets import ClassLabel, Features, Value, load_dataset

STARS = ClassLabel(names=["1", "2", "3", "4", "5"])


def names(rows):
    return " ".join(STARS.int2str(rows["stars"][:]))


seen = []
for stars in ("1 2 3 4", "0 1 2 3"):
    file = Path(sys.argv[1], f"{stars[0]}.csv")
    file.write_text("text,stars\n" + "".join(f"a,{n}\n" for n in stars.split()))
    how = {"data_files": str(file), "split": "train", "cache_dir": f"{file}.cache"}
    features = Features({"text": Value("string"), "stars": STARS})
    given = names(load_dataset("csv", features=features, **how))
    cast = names(load_dataset("csv", **how).cast_column("stars", STARS))
    print(f"stars {stars}: as features {given}, cast {cast}")
    seen.append((given, cast))
sys.exit(seen != [("1 2 3 4", "2 3 4 5"), ("1 1 2 3", "1 2 3 4")])
PY
HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$folder/venv/bin/python" "$folder/run.py" "$folder"
