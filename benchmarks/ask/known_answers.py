"""How often `dss ask` is wrong where the right answer is known: the tasks of benchmarks/ask/tasks,
whose data are made so that rationales help by their order, by their words, or not at all.

  python benchmarks/ask/known_answers.py --budget 6 --out benchmarks/results/ask-known.json

Each repeat has seeds of its own. Goes on where it stopped: what `--out` has is not asked again, and
what was broken off goes on in its folder. Who cannot tell is never wrong.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RIGHT = {"pairs_content": {"content"}, "pairs_words": {"words"}, "pairs_noise": {"no", "worse"}}
UNKNOWN = {"cannot tell", "not asked"}  # The latter: controls did not fit the budget.


def asked(task: str, repeat: int, budget: float, folder: Path) -> dict:
    """The answer of one experiment."""
    words = [
        "ask",
        "--task",
        task,
        "--task_dir",
        str(HERE / "tasks"),
        "--fractions",
        "1",
        "--budget",
        str(budget),
    ]
    words += ["--gin_file", str(HERE / "pairs.gin"), "--first_seed", str(100 * repeat)]
    words += ["--vocabulary", str(ROOT / "tasks/vocabularies/word_problems.model")]
    words += ["--output_dir", str(folder)]
    command = [sys.executable, "-m", "dss_jax.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE / 'tasks'}"}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    return json.loads((folder / "answer.json").read_text())


def verdict(saved: dict) -> str:
    """Why rationales help, or "no", "worse" or "cannot tell"."""
    helps = saved["answer"]["contrasts"]["helps"]["answer"]
    return saved["answer"]["cause"] if helps == "yes" else helps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=6, help="minutes of an experiment")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("runs/ask_known"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = json.loads(args.out.read_text())["experiments"] if args.out.exists() else []
    done = {(row["task"], row["repeat"]) for row in rows}
    for repeat, (task, right) in product(range(args.repeats), RIGHT.items()):
        if (task, repeat) in done:
            continue
        saved = asked(task, repeat, args.budget, args.folder / f"{task}_{repeat}")
        said = verdict(saved)
        gain = saved["answer"]["contrasts"]["helps"]
        rows.append(
            {
                "task": task,
                "repeat": repeat,
                "said": said,
                "wrong": said not in right | UNKNOWN,
                "gain": gain["estimate"]["value"],
                "interval": [gain["low"], gain["high"]],
                "seeds": gain["estimate"]["seeds"],
                "minutes": saved["minutes"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        report = {"budget": args.budget, "experiments": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    for task in RIGHT:
        own = [row for row in rows if row["task"] == task]
        print(
            task, dict(Counter(row["said"] for row in own)), f"{sum(r['wrong'] for r in own)} wrong"
        )


if __name__ == "__main__":
    main()
