#!/bin/sh
# distilabel 1.5.3, datasets 5.2.0. `pipeline.run()` reads what an earlier run has cached (the default), and knows it by a
# signature of the steps' settings. The rows of `LoadDataFromDicts` are not in it, nor is the code of a step. So after one
# run, a run of the same pipeline with other rows asks nothing and gives the answers to the rows of before, without a word
# of it, as if they were the new ones'; and a parser that has been mended since is not called. Give each data set and each
# version of a parser a name of its own (`Pipeline(name=...)`), or `use_cache=False`.
#
# Seen: rows a, b, then rows c, d, e: the second run gives the answers of a and b. The parser changed: the old one's
#       labels. use_cache=False: c, d, e.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  distilabel==1.5.3 datasets==5.2.0 requests==2.34.2
cat > "$folder/run.py" <<'PY'
import json
import os
import sys

from distilabel.models.llms import LLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, StepInput, step
from distilabel.steps.tasks import TextGeneration


class Teacher(LLM):
    """Says what it was asked."""

    @property
    def model_name(self):
        return "teacher"

    def generate(self, inputs, num_generations=1):
        counts = {"input_tokens": [1], "output_tokens": [1]}
        return [{"generations": [one[-1]["content"]], "statistics": counts} for one in inputs]


@step(inputs=["generation"], outputs=["label"])
def parse(inputs: StepInput):
    for row in inputs:
        row["label"] = row["generation"] + os.environ["PARSER"]  # Stands for a parser that changes.
    yield inputs


def main(rows, use_cache):
    with Pipeline(name="rationales", cache_dir="cache") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": row} for row in rows])
        load >> TextGeneration(llm=Teacher()) >> parse()
    found = pipeline.run(use_cache=use_cache)
    print(json.dumps([row["label"] for row in found["default"]["train"]]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "cache")
PY
cd "$folder"
asked() {
  PARSER=$1 HF_HUB_OFFLINE=1 venv/bin/python run.py "$2" "$3" 2>/dev/null | tail -1
}
is() {
  echo "$1: $2"
  [ "$2" = "$3" ]
}
is "rows a, b, parser 1" "$(asked 1 ab cache)" '["a1", "b1"]'
is "rows c, d, e, parser 1" "$(asked 1 cde cache)" '["a1", "b1"]'
is "rows c, d, e, parser 2" "$(asked 2 cde cache)" '["a1", "b1"]'
is "use_cache=False" "$(asked 2 cde anew)" '["c2", "d2", "e2"]'
