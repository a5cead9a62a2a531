#!/bin/sh
# grain 0.2.18. `MapDataset.mix` deals out positions, and `MapDataset.filter` leaves the positions of what it drops, as
# None, which are passed over only when the mixture is read. So the weights are of rows before the filter: label rows
# and rationale rows at 0.5 to 0.5, of which one row in ten has a rationale, are mixed at 10 to 1, and its length
# counts rows that never come. `IterDataset.mix` of the same two keeps the weights. Filter before, into a source of its
# own, or mix iterators.
#
# Seen: 1,000 rows of a mixture at 0.5 to 0.5, one part filtered to a tenth: 91 of that part by MapDataset.mix, 500
#       by IterDataset.mix. Both parts 100 rows, without repeat: len() is 200, and 110 come.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grain==0.2.18
cat > "$folder/run.py" <<'PY'
import itertools
import sys

import grain

labels = grain.MapDataset.source([("label", n) for n in range(100)])
rationales = grain.MapDataset.source([("rationale", n) for n in range(100)])
rationales = rationales.filter(lambda row: row[1] % 10 == 0)


def share(mixture):
    rows = list(itertools.islice(iter(mixture), 1000))
    return sum(kind == "rationale" for kind, _ in rows)


parts = [labels.repeat(), rationales.repeat()]
of_map = share(grain.MapDataset.mix(parts, weights=[0.5, 0.5]).to_iter_dataset())
of_iter = share(grain.IterDataset.mix([p.to_iter_dataset() for p in parts], weights=[0.5, 0.5]))
once = grain.MapDataset.mix([labels, rationales], weights=[0.5, 0.5])
come = sum(1 for _ in once.to_iter_dataset())
print(f"rationales among 1,000 rows: MapDataset.mix {of_map}, IterDataset.mix {of_iter}")
print(f"one epoch: len() {len(once)}, rows {come}")
sys.exit((of_map, of_iter, len(once), come) != (91, 500, 200, 110))
PY
"$folder/venv/bin/python" "$folder/run.py"
