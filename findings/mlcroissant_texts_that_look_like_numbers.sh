#!/bin/sh
# mlcroissant 1.1.1, whose records are what TFDS's CroissantBuilder reads. A field of type sc:Text is made text again
# after pandas has guessed its type, from the whole column, and of JSON strings as well. Where every answer of a file
# looks like a number, they come back as that number is written: of one data set the same answer has other text in one
# split than in another, by what its neighbours are. In CSV, labels that pandas takes for missing (NA, None, N/A, nan,
# null) are None besides; in JSON lines they stay. And an sc:Integer that has a null in its column goes by way of a
# float: ids of 54 bits and more change.
#
# Seen: JSON strings "010", "1.50", "7" are read as "10.0", "1.5", "7.0"; with "yes" among them they are as written.
#       "NA" is "NA" of JSON lines, None of CSV. 9007199254740993 beside a null is 9007199254740992.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlcroissant==1.1.1 pandas==3.1.1
cat > "$folder/run.py" <<'PY'
import csv
import hashlib
import json
import logging
import sys
from pathlib import Path

import mlcroissant

logging.disable(logging.WARNING)
TERMS = "citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes"
TERMS += " isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace"
TERMS += " samplingRate separator source subField transform"
CONTEXT = {"@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/"}
CONTEXT |= {"cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/"}
CONTEXT |= {"dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo"}
CONTEXT |= {term: f"cr:{term}" for term in TERMS.split()}
CONTEXT |= {term: {"@id": f"cr:{term}", "@type": "@json"} for term in ("data", "examples")}
CONTEXT |= {"dataType": {"@id": "cr:dataType", "@type": "@vocab"}}


def read(rows, kind, lines):
    """The rows as mlcroissant gives them of a file of JSON lines, or of CSV."""
    file = Path("rows.jsonl" if lines else "rows.csv")
    with file.open("w", newline="") as out:
        if lines:
            out.writelines(json.dumps({"answer": row}) + "\n" for row in rows)
        else:
            csv.writer(out).writerows([["answer"], *([row] for row in rows)])
    source = {"fileObject": {"@id": "file"}}
    source["extract"] = {"jsonPath": "answer"} if lines else {"column": "answer"}
    field = {"@type": "cr:Field", "@id": "rows/answer", "name": "answer"}
    field |= {"dataType": kind, "source": source}
    there = {"@type": "cr:FileObject", "@id": "file", "name": "file", "contentUrl": file.name}
    there["encodingFormat"] = "application/jsonlines" if lines else "text/csv"
    there["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    record_set = {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "field": [field]}
    metadata = {"@context": CONTEXT, "@type": "sc:Dataset", "name": "answers"}
    metadata["conformsTo"] = "http://mlcommons.org/croissant/1.0"
    metadata |= {"distribution": [there], "recordSet": [record_set]}
    Path("metadata.json").write_text(json.dumps(metadata))
    found = [r["rows/answer"] for r in mlcroissant.Dataset("metadata.json").records("rows")]
    return [one.decode() if isinstance(one, bytes) else one for one in found]


numbers = ["010", "1.50", "7"]
seen = {
    "digits, JSON lines": read(numbers, "sc:Text", True),
    "digits, CSV": read(numbers, "sc:Text", False),
    "and a word, JSON lines": read([*numbers, "yes"], "sc:Text", True),
    "words, JSON lines": read(["NA", "no"], "sc:Text", True),
    "words, CSV": read(["NA", "no"], "sc:Text", False),
    "ids, JSON lines": read([9007199254740993, None], "sc:Integer", True),
}
for name, values in seen.items():
    print(f"{name}: {values}")
as_numbers = ["10.0", "1.5", "7.0"]
expected = [as_numbers, as_numbers, [*numbers, "yes"], ["NA", "no"], [None, "no"]]
sys.exit(list(seen.values()) != [*expected, [9007199254740992, None]])
PY
cd "$folder" && venv/bin/python run.py
