"""Label rows with a trained student: CSV, JSONL or Parquet in, the same rows and a label out.

  dss predict --student runs/cqa --input new.csv --out labelled.csv
  dss predict --student students/cqa --input new.jsonl --out labelled.jsonl --explain
  echo "a question" | dss predict --student runs/cqa --input - --out -

All columns of the input are kept; label, probability and rationale are added. What is stopped goes
on when the command is given again. docs/predict.md.
"""

import argparse
import logging
import shlex
import sys
import time
from contextlib import nullcontext

from dss_jax.core import log as logs
from dss_jax.core import registry, signals
from dss_jax.core.errors import UsageError

log = logging.getLogger(__name__)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    student = "a run's folder, one that dss convert wrote, or OWNER/NAME of the hub"
    add("--student", required=True, help=student)
    add("--input", required=True, help="rows: .csv, .tsv, .jsonl, .parquet, .txt; - is stdin")
    add("--out", required=True, help="where they go with their labels; - is stdout (JSONL)")
    text = "whose texts are read (default: those that the student was trained on, or input)"
    add("--input_column", metavar="NAME", help=text)
    add("--task", help="a task file that makes the input of its raw rows: see `dss tasks`")
    add("--task_dir", action="append", default=[], help="a folder with task files of yours")
    text = "a label that is allowed, in place of the student's; give it for each"
    add("--label", action="append", default=[], metavar="TEXT", help=text)
    add("--explain", action="store_true", help="the student's rationale too")
    text = "before the names of the new columns (default: none, or predicted_ where one is taken)"
    add("--prefix", metavar="TEXT", help=text)
    add("--shard", metavar="I/N", help="every N-th row from the I-th (from 0)")
    add("--checkpoint", help="of a run's folder: best (default), latest or a step")
    add("--engine", help="jax or ctranslate2 (default: by the folder)")
    add("--threads", type=int, help="of the processor (default: all)")
    text = "of the engine jax: float32 or bfloat16 (default: float32 on a CPU, else the run's)"
    add("--dtype", help=text)


def main(args: argparse.Namespace) -> int:
    if len(args.label) == 1:
        raise UsageError(
            f"--label {args.label[0]!r} alone would be the answer to every row: give --label for "
            "each that is allowed."
        )
    from dss_jax.student.load import load
    from dss_jax.student.predict import PredictJob, predict_table
    from dss_jax.student.tables import STANDARD

    options = {name: getattr(args, name) for name in ("engine", "threads", "checkpoint", "dtype")}
    with logs.on_stderr() if args.out == STANDARD else nullcontext():
        job = PredictJob(
            input=args.input,
            out=args.out,
            input_column=args.input_column,
            task=registry.load_task(args.task, args.task_dir) if args.task else None,
            labels=tuple(args.label),
            explain=args.explain,
            shard=args.shard,
            prefix=args.prefix,
        )
        student = load(args.student, **options)
        began = time.monotonic()
        try:
            rows = predict_table(student, job)
        except KeyboardInterrupt:
            log.info("stopped. To go on, give the same command again:")
            log.info("  dss %s", shlex.join(sys.argv[1:]))
            return signals.INTERRUPTED
        log.info("%d rows in %.1f s: %s", rows, time.monotonic() - began, args.out)
    return 0
