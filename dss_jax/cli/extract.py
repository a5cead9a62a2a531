"""Asks an LLM for rationales and labels: any server that speaks OpenAI's protocol.

  dss extract --task cqa --split train --model gpt-4o-mini --out cqa_train.jsonl
  dss extract --task cqa --split train --model llama3.2 --base_url http://localhost:11434/v1 \
      --out cqa_train.jsonl
  dss extract --task cqa --split train,validation,test --model gpt-4o-mini --out cqa.jsonl
  dss extract --task cqa --split test --from_release DIR --out cqa_test.jsonl

Every reply is kept in a journal beside the output as it comes: a second run asks only for what is
missing. The key comes from the environment. docs/extract.md.
"""

import argparse
from pathlib import Path

from dss_jax.cli import options
from dss_jax.core import registry
from dss_jax.core.checks import among, at_least
from dss_jax.core.errors import UsageError
from dss_jax.core.types import SPLITS

OMITTED = ("stop", "temperature", "max_tokens")
"""Fields that some models refuse and the others need."""

COUNTS = (
    "limit samples max_tokens concurrency max_attempts show_prompt rpm tpm top_k batch_size fsdp"
)
"""Flags that must be at least 1."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--task", required=True, help="a task file's name: see `dss tasks`")
    add("--split", default="train", help="train (default), validation, test; several: train,test")
    add("--model", help="the teacher, as its server knows it; or jax:CHECKPOINT")
    add("--out", type=Path, help="the record file, JSONL; of several splits, OUT_SPLIT.jsonl each")
    add("--data_dir", help="folder of the data (also: DSS_DATA_DIR)")
    add("--task_dir", action="append", default=[], help="folder of task files")
    options.add_bad_rows_flag(parser)
    add("--limit", type=int, help="only the first rows")
    add("--ids", metavar="FILE", type=Path, help="only rows with the ids of dss records select")
    add("--shard", metavar="I/N", help="every N-th row from the I-th (from 0)")
    add("--from_release", metavar="DIR", help="no LLM: parse the authors' completions")
    add = parser.add_argument_group("prompt").add_argument
    add("--show_prompt", type=int, metavar="N", help="print N requests; send none")
    add("--exemplars", type=int, help="how many of the task's (default: all)")
    add("--exemplar_seed", type=int, help="shuffle them (default: the file's order)")
    add("--form", choices=("chat", "completion"), default="chat")
    add("--hint", action="store_true", help="show the teacher the gold label")
    add("--structured", action="store_true", help="ask for JSON by a schema")
    add("--thoughts_as_rationale", action="store_true", help="train on a model's thoughts")
    add = parser.add_argument_group("sampling").add_argument
    add("--samples", type=int, default=1, help="completions a row (default 1)")
    add("--temperature", type=float, help="default: 0 for one sample, else 0.7")
    add("--top_p", type=float)
    add("--top_k", type=int, help="vLLM, llama.cpp and jax: have it; OpenAI has not")
    add("--max_tokens", type=int, default=256, help="of a completion (default 256)")
    names = ("max_tokens", "max_completion_tokens")
    newer = "its name: newer OpenAI models want max_completion_tokens"
    add("--max_tokens_field", default="max_tokens", choices=names, help=newer)
    add("--seed", type=int, help="sent with each request; sample i gets seed + i")
    omit = "leave this field out of the requests; may be repeated"
    add("--omit", action="append", default=[], choices=OMITTED, help=omit)
    add("--extra_body", metavar="JSON", help='more fields for the requests: {"top_k": 5}')
    add = parser.add_argument_group("sending").add_argument
    add("--base_url", help="of the server (default: OpenAI's)")
    key = "variable that holds the key (default: OPENAI_API_KEY)"
    add("--api_key_env", default="OPENAI_API_KEY", metavar="NAME", help=key)
    add("--concurrency", type=int, default=32, help="requests at once (default 32)")
    add("--rpm", type=int, help="requests a minute, at most")
    add("--tpm", type=int, help="tokens a minute, at most")
    add("--max_attempts", type=int, default=8, help="for one request (default 8)")
    add("--timeout", type=float, default=120, help="seconds (default 120)")
    add("--journal", type=Path, help="default: OUT.journal")
    add("--only_failed", action="store_true", help="ask again for failed rows alone")
    add("--batch", action="store_true", help="the provider's batch API: half price")
    add("--terms", default="", help="note on the terms of use, kept as provenance")
    add = parser.add_argument_group("money").add_argument
    add("--dry_run", action="store_true", help="count tokens, cost and time only")
    add("--price_in", type=float, help="USD a million prompt tokens")
    add("--price_out", type=float, help="USD a million completion tokens")
    add("--price_table", type=Path, help="JSON file of prices, in LiteLLM's form")
    add("--budget", type=float, help="USD; asks before it would be passed")
    add("--yes", action="store_true", help="do not ask")
    add = parser.add_argument_group("a teacher of T5's family: --model jax:CHECKPOINT").add_argument
    add("--batch_size", type=int, default=32, help="prompts at once (default 32)")
    add("--input_length", type=int, default=2048, help="longest prompt in tokens (default 2,048)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--fsdp", type=int, default=1, help="devices that share the parameters (default 1)")
    add("--vocabulary", help="SentencePiece file or tokenizer, where the checkpoint has none")


def main(args: argparse.Namespace) -> int:
    args.local = (args.model or "").startswith("jax:")
    _check(args)
    task = registry.load_task(args.task, args.task_dir)

    from dss_jax.cli import extraction

    several = []
    for split in args.splits:
        out = args.out
        if out is not None and len(args.splits) > 1:
            out = out.with_name(f"{out.stem}_{split}{out.suffix}")
        several.append(argparse.Namespace(**vars(args) | {"split": split, "out": out}))
    if args.from_release:
        for own in several:
            extraction.from_release(own, task)
        return 0
    return extraction.main(several, task)


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for flags that do not go together, before anything is read; fills in
    `splits`.
    """
    args.splits = list(map(options.split_of, args.split.split(",")))
    args.skip = args.bad_rows == "skip"
    for name in args.splits:
        among("split", name, SPLITS)
    if len(set(args.splits)) < len(args.splits):
        raise UsageError(f"--split {args.split} has a split twice.")
    for name, least in [*((count, 1) for count in COUNTS.split()), ("exemplars", 0)]:
        if (value := getattr(args, name)) is not None:
            at_least(f"--{name}", value, least)
    if args.timeout <= 0:
        raise UsageError(f"--timeout must be above 0 seconds, not {args.timeout}.")
    for flag, path in (("out", args.out), ("journal", args.journal)):
        if path is not None and path.parts[:1] in (("gs:",), ("s3:",)):
            given = path.as_posix().replace(":/", "://", 1)
            raise UsageError(
                f"--{flag} {given}: must be a local path, for the journal is an SQLite database, "
                "which needs a disk. Copy the finished records to the bucket."
            )
    if args.out is None and args.show_prompt is None and not args.dry_run:
        raise UsageError("--out is missing: the record file to write, for example cqa.jsonl.")
    if args.model is None and not args.from_release:
        raise UsageError(
            "--model is missing: the teacher's name, as its server knows it, or jax:CHECKPOINT. "
            "--from_release DIR needs none."
        )
    if args.local:
        for name in ("omit", "extra_body", "batch", "structured", "base_url"):
            if getattr(args, name):
                raise UsageError(f"--{name} is for servers; {args.model} runs here.")
