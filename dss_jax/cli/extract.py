"""Asks an LLM for rationales and labels: any server that speaks OpenAI's protocol.

  dss extract --task cqa --split train --model gpt-4o-mini --out cqa_train.jsonl
  dss extract --task cqa --split train --model llama3.2 --base_url http://localhost:11434/v1 \
      --out cqa_train.jsonl
  dss extract --task cqa --split test --from_release DIR --out cqa_test.jsonl

Every reply is kept in a journal beside the output as it comes: a second run asks only for what is
missing. The key comes from the environment. docs/extract.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dss_jax.core import registry
from dss_jax.core.errors import UsageError
from dss_jax.core.types import SPLITS, DistillationTask, Example


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("--task", required=True, help="a task file's name: see `dss tasks`")
    parser.add_argument("--split", choices=SPLITS, default="train", help="default: train")
    parser.add_argument("--model", help="the teacher, as its server knows it; or jax:CHECKPOINT")
    parser.add_argument("--out", type=Path, help="the record file, JSONL")
    parser.add_argument("--data_dir", help="folder of the data (also: DSS_DATA_DIR)")
    parser.add_argument("--task_dir", action="append", default=[], help="folder of task files")
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--shard", metavar="I/N", help="every N-th row from the I-th (from 0)")
    parser.add_argument("--from_release", metavar="DIR",
                        help="no LLM: parse the completions of the authors' release")  # fmt: skip
    _prompt_flags(parser.add_argument_group("prompt"))
    _sampling_flags(parser.add_argument_group("sampling"))
    _sending_flags(parser.add_argument_group("sending"))
    _money_flags(parser.add_argument_group("money"))


def _prompt_flags(group: Any) -> None:
    group.add_argument("--show_prompt", type=int, metavar="N", help="print N requests; send none")
    group.add_argument("--exemplars", type=int, help="how many of the task's (default: all)")
    group.add_argument("--exemplar_seed", type=int, help="shuffle them (default: the file's order)")
    group.add_argument("--form", choices=("chat", "completion"), default="chat")
    group.add_argument("--hint", action="store_true", help="show the teacher the gold label")
    group.add_argument("--structured", action="store_true", help="ask for JSON by a schema")


def _sampling_flags(group: Any) -> None:
    group.add_argument("--samples", type=int, default=1, help="completions a row (default 1)")
    group.add_argument("--temperature", type=float, help="default: 0 for one sample, else 0.7")
    group.add_argument("--top_p", type=float)
    group.add_argument("--max_tokens", type=int, default=256, help="of a completion (default 256)")
    group.add_argument("--max_tokens_field", default="max_tokens",
                       choices=("max_tokens", "max_completion_tokens"),
                       help="its name: newer OpenAI models want max_completion_tokens")  # fmt: skip
    group.add_argument("--seed", type=int, help="sent with each request; sample i gets seed + i")


def _sending_flags(group: Any) -> None:
    group.add_argument("--base_url", help="of the server (default: OpenAI's)")
    group.add_argument("--api_key_env", default="OPENAI_API_KEY", metavar="NAME",
                       help="variable that holds the key (default: OPENAI_API_KEY)")  # fmt: skip
    group.add_argument("--concurrency", type=int, default=32, help="requests at once (default 32)")
    group.add_argument("--rpm", type=int, help="requests a minute, at most")
    group.add_argument("--tpm", type=int, help="tokens a minute, at most")
    group.add_argument("--max_attempts", type=int, default=8, help="for one request (default 8)")
    group.add_argument("--timeout", type=float, default=120, help="seconds (default 120)")
    group.add_argument("--journal", type=Path, help="default: OUT.journal")
    group.add_argument("--only_failed", action="store_true", help="ask again for failed rows alone")
    group.add_argument("--batch", action="store_true", help="the provider's batch API: half price")
    group.add_argument("--terms", default="", help="note on the terms of use, kept as provenance")


def _money_flags(group: Any) -> None:
    group.add_argument("--dry_run", action="store_true", help="count tokens, cost and time only")
    group.add_argument("--price_in", type=float, help="USD a million prompt tokens")
    group.add_argument("--price_out", type=float, help="USD a million completion tokens")
    group.add_argument("--price_table", type=Path, help="JSON file of prices, in LiteLLM's form")
    group.add_argument("--budget", type=float, help="USD; asks before it would be passed")
    group.add_argument("--yes", action="store_true", help="do not ask")


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}. See {parser.prog} --help.")
    _check(args)
    task = registry.load_task(args.task, args.task_dir)
    if args.from_release:
        return _from_release(args, task)

    from dss_jax.experiment.extraction import shard_of

    examples = shard_of(_examples(args, task)[: args.limit], args.shard)
    if not examples:
        raise UsageError("no row is left to ask about. See --limit and --shard.")
    extraction = _extraction(args, task)
    if args.show_prompt is not None:
        return _show(extraction, examples[: args.show_prompt])
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for flags that do not go together, before anything is read."""
    for name, least in (("limit", 1), ("samples", 1), ("max_tokens", 1), ("concurrency", 1),
                        ("max_attempts", 1), ("show_prompt", 1), ("rpm", 1), ("tpm", 1),
                        ("exemplars", 0)):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}, not {value}.")
    if args.timeout <= 0:
        raise UsageError(f"--timeout must be above 0 seconds, not {args.timeout}.")
    if args.out is None and args.show_prompt is None and not args.dry_run:
        raise UsageError("--out is missing: the record file to write, for example cqa.jsonl.")
    if args.model is None and not args.from_release:
        raise UsageError(
            "--model is missing: the teacher's name, as its server knows it, or jax:CHECKPOINT. "
            "--from_release DIR needs none."
        )


def _examples(args: argparse.Namespace, task: DistillationTask) -> list[Example]:
    from dss_jax.data import rows

    return rows.examples(task, args.split, args.data_dir)


def _extraction(args: argparse.Namespace, task: DistillationTask) -> Any:
    from dss_jax.experiment.extraction import Extraction
    from dss_jax.teacher.prompting import PromptOptions

    temperature = args.temperature
    if temperature is None:
        temperature = 0.0 if args.samples == 1 else 0.7
    if args.samples > 1 and temperature == 0:
        raise UsageError(f"--samples {args.samples} at --temperature 0 are all the same.")
    sampling = {"temperature": temperature, args.max_tokens_field: args.max_tokens}
    for name in ("top_p", "seed"):
        if getattr(args, name) is not None:
            sampling[name] = getattr(args, name)
    options = PromptOptions(
        exemplars=args.exemplars, order_seed=args.exemplar_seed, form=args.form,
        hint=args.hint, structured=args.structured,
    )  # fmt: skip
    return Extraction(task=task, split=args.split, model=args.model, options=options,
                      samples=args.samples, sampling=sampling)  # fmt: skip


def _show(extraction: Any, examples: Sequence[Example]) -> int:
    from dss_jax.teacher.prompting import shown

    for example in examples:
        for job in extraction.jobs_of(example):
            print(f"--- {example.id}, sample {job.sample}\n{shown(job.body)}\n")
            break
    return 0
