"""Tries two clients of OpenAI's protocol on `dss serve`: the `openai` client, and
lm-evaluation-harness (`local-completions`). Needs `pip install "lm-eval[api]" openai`, in an
environment of its own; times nothing.

  python benchmarks/serve_clients.py --student RUN --dss .venv/bin/dss

lm-evaluation-harness gets a task of the student's own test examples: a prompt with the student's
prefix, the label as target, exact match. Its texts must be those of `/v1/predict` without labels.
"""

import argparse
import datetime
import json
import signal
import subprocess
import sys
import tempfile
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

from openai import BadRequestError, OpenAI
from reporting import RESULTS, command, write_report

TASK = """\
task: student
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{label}}}}"
generation_kwargs: {{until: [], max_gen_toks: 64, do_sample: false, temperature: 0.0}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def through_openai(url: str, prompts: list[str], prefix: str) -> dict[str, Any]:
    """What the `openai` client gets: models, texts, and refusals in words."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    (model,) = [one.id for one in client.models.list().data]
    answer = client.completions.create(
        model=model, prompt=[prefix + text for text in prompts], max_tokens=64, temperature=0
    )
    refused = {}
    for name, value in {"echo": True, "n": 2, "stream": True, "logprobs": 1}.items():
        fields: dict[str, Any] = {"model": model, "prompt": "x", name: value}
        try:
            client.completions.create(**fields)
        except BadRequestError as error:
            refused[name] = {"status": error.status_code, "param": error.param}
    assert [one["param"] for one in refused.values()] == ["echo", "n", "stream", "logprobs"]
    return {
        "openai": metadata.version("openai"),
        "texts": [choice.text for choice in answer.choices],
        "usage": answer.usage
        and answer.usage.model_dump(include={"prompt_tokens", "total_tokens"}),
        "refused": refused,
    }


def through_lm_eval(url: str, model: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    """The results of lm-evaluation-harness for a task of these rows, and the texts that it got."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "task.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
        arguments = {
            "model": model,
            "base_url": f"{url}/v1/completions",
            "tokenized_requests": False,
            "tokenizer_backend": None,
            "num_concurrent": 4,
            "max_retries": 1,
        }
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
        command += ["--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())]
        command += ["--include_path", name, "--tasks", "student"]
        command += ["--output_path", f"{name}/out", "--log_samples"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert not done.returncode, done.stderr
        (results,) = folder.glob("out/**/results_*.json")
        (samples,) = folder.glob("out/**/samples_*.jsonl")
        texts = [json.loads(line)["filtered_resps"][0] for line in samples.read_text().splitlines()]
        return {"results": json.loads(results.read_text())["results"], "texts": texts}


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", required=True, metavar="DIR", help="as of dss serve")
    parser.add_argument("--dss", nargs="+", default=["dss"], help="the command (default: dss)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: results/)")
    args = parser.parse_args()
    serve = [*args.dss, "serve", "--student", args.student, "--port", "0"]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = ""
    for line in server.stdout:
        url = line.partition(" at ")[2].split("/ ")[0] if " at http" in line else url
        if line.startswith("ready"):
            break
    try:
        with urllib.request.urlopen(f"{url}/v1/model") as found:
            card = json.load(found)
        prefix = card["label_prefix"]
        rows = [
            {"prompt": prefix + one["input"], "label": one["label"]} for one in card["examples"]
        ]
        body = json.dumps({"input": [one["input"] for one in card["examples"]], "labels": None})
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/predict", body.encode(), headers)
        with urllib.request.urlopen(request) as found:
            wanted = [one["label"] for one in json.load(found)["predictions"]]
        result = {
            "task": card["task"],
            "engine": card["engine"],
            "rows": len(rows),
            "openai": through_openai(url, [one["input"] for one in card["examples"]], prefix),
            "lm_eval_version": metadata.version("lm_eval"),
            "lm_eval": through_lm_eval(url, card["id"], rows),
        }
        assert result["openai"]["texts"] == wanted
        assert result["lm_eval"]["texts"] == wanted, result["lm_eval"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    result["date"] = datetime.date.today().isoformat()
    result["command"] = command(sys.argv[1:], "serve_clients.py")
    write_report(result, args.out / "serve-clients.json")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
