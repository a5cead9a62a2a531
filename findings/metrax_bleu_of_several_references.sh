#!/bin/sh
# google-metrax 0.2.4. Its `BLEU` says that it counts, of several references, the closest length to each prediction's, as
# sacreBLEU and the paper's later versions do; it takes the shortest. So one short reference a row (three people have
# explained each test row of e-SNLI) takes the brevity penalty away from all others, and rationales that stop half-way
# score like whole ones. With one reference the two agree.
#
# Seen: two predictions of 8 and 7 words, each the beginning of its second reference (11 and 10 words), whose first has
#       two: metrax 100.0, sacreBLEU 67.0. Of the second references alone both give 67.0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  google-metrax==0.2.4 sacrebleu==2.5.1 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cat > "$folder/run.py" <<'PY'
import sys

import metrax
import sacrebleu

PREDICTIONS = ["a man is sleeping on the old bench", "the dog runs in a big park"]
REFERENCES = [
    ["he sleeps", "a man is sleeping on the old bench in the park"],
    ["dogs run", "the dog runs in a big park near the lake"],
]


def both(references):
    theirs = metrax.BLEU.from_model_output(PREDICTIONS, references).compute()
    by_place = [list(one) for one in zip(*references)]
    known = sacrebleu.corpus_bleu(PREDICTIONS, by_place, tokenize="none").score
    return round(100 * float(theirs), 1), round(known, 1)


seen = [both(REFERENCES), both([[one[1]] for one in REFERENCES])]
for name, (theirs, known) in zip(("two references", "the second alone"), seen):
    print(f"{name}: metrax {theirs}, sacreBLEU {known}")
sys.exit(seen != [(100.0, 67.0), (67.0, 67.0)])
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
