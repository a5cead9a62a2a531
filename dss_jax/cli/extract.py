"""Asks an LLM for rationales and labels: any server that speaks OpenAI's protocol.

  dss extract --task cqa --split train --model gpt-4o-mini --out cqa_train.jsonl
  dss extract --task cqa --split train --model llama3.2 --base_url http://localhost:11434/v1 \
      --out cqa_train.jsonl
  dss extract --task cqa --split test --from_release DIR --out cqa_test.jsonl

Every reply is kept in a journal beside the output as it comes: a second run asks only for what is
missing. The key comes from the environment. docs/extract.md.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dss_jax.core import registry
from dss_jax.core.errors import UsageError
from dss_jax.core.types import SPLITS, DistillationTask, Example

OMITTED = ("stop", "temperature", "max_tokens")
"""Fields that some models refuse and the others need."""

FIXED = ("model", "messages", "prompt", "n", "stream", "response_format")
"""Fields that --extra_body may not hold: what is asked, and how answers are read."""


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
    _jax_flags(parser.add_argument_group("a teacher of T5's family: --model jax:CHECKPOINT"))


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
    group.add_argument("--top_k", type=int, help="vLLM, llama.cpp and jax: have it; OpenAI has not")
    group.add_argument("--max_tokens", type=int, default=256, help="of a completion (default 256)")
    group.add_argument("--max_tokens_field", default="max_tokens",
                       choices=("max_tokens", "max_completion_tokens"),
                       help="its name: newer OpenAI models want max_completion_tokens")  # fmt: skip
    group.add_argument("--seed", type=int, help="sent with each request; sample i gets seed + i")
    group.add_argument("--omit", action="append", default=[], choices=OMITTED,
                       help="leave this field out of the requests; may be repeated")  # fmt: skip
    group.add_argument("--extra_body", metavar="JSON",
                       help='more fields for the requests: {"top_k": 5}')  # fmt: skip


def _fields(text: str | None) -> dict[str, Any]:
    """The object of --extra_body; empty where it is not given.

    Raises:
      UsageError: it is none, or holds a field that may not be set so.
    """
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--extra_body must be JSON, not {text!r}: {error}.") from error
    if not isinstance(fields, dict):
        raise UsageError(f"--extra_body must be a JSON object, not {text!r}.")
    if wrong := [name for name in fields if name in FIXED]:
        raise UsageError(
            f"--extra_body may not hold {wrong[0]!r}: --model, --samples, --structured and the "
            "task's prompt say that."
        )
    return fields


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


def _jax_flags(group: Any) -> None:
    group.add_argument("--batch_size", type=int, default=32, help="prompts at once (default 32)")
    group.add_argument("--input_length", type=int, default=2048,
                       help="longest prompt in tokens (default 2,048)")  # fmt: skip
    group.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    group.add_argument("--fsdp", type=int, default=1,
                       help="devices that share the parameters (default 1)")  # fmt: skip
    group.add_argument("--vocabulary", help="SentencePiece file, where the checkpoint has none")


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}. See {parser.prog} --help.")
    _check(args)
    task = registry.load_task(args.task, args.task_dir)
    if args.from_release:
        return _from_release(args, task)

    from dss_jax.teacher.extraction import shard_of

    examples = shard_of(_examples(args, task)[: args.limit], args.shard)
    if not examples:
        raise UsageError("no row is left to ask about. See --limit and --shard.")
    extraction = _extraction(args, task)
    if args.show_prompt is not None:
        return _show(extraction, examples[: args.show_prompt])
    return _ask(args, extraction, examples)


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for flags that do not go together, before anything is read."""
    for name, least in (("limit", 1), ("samples", 1), ("max_tokens", 1), ("concurrency", 1),
                        ("max_attempts", 1), ("show_prompt", 1), ("rpm", 1), ("tpm", 1),
                        ("top_k", 1), ("exemplars", 0), ("batch_size", 1),
                        ("fsdp", 1)):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}, not {value}.")
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
    if (args.model or "").startswith("jax:"):
        for name in ("omit", "extra_body", "batch", "structured", "base_url"):
            if getattr(args, name):
                raise UsageError(f"--{name} is for servers; {args.model} runs here.")


def _examples(args: argparse.Namespace, task: DistillationTask) -> list[Example]:
    from dss_jax.data import rows

    return rows.examples(task, args.split, args.data_dir)


def _extraction(args: argparse.Namespace, task: DistillationTask) -> Any:
    from dss_jax.teacher.extraction import Extraction
    from dss_jax.teacher.prompting import PromptOptions

    temperature = args.temperature
    if temperature is None:
        temperature = 0.0 if args.samples == 1 else 0.7
    if args.samples > 1 and temperature == 0:
        raise UsageError(f"--samples {args.samples} at --temperature 0 are all the same.")
    sampling = {"temperature": temperature, args.max_tokens_field: args.max_tokens}
    for name in ("top_p", "top_k", "seed"):
        if getattr(args, name) is not None:
            sampling[name] = getattr(args, name)
    # --omit max_tokens means the limit, whatever its name.
    omit = [args.max_tokens_field if name == "max_tokens" else name for name in args.omit]
    options = PromptOptions(
        exemplars=args.exemplars, order_seed=args.exemplar_seed,
        form="completion" if args.model.startswith("jax:") else args.form,
        hint=args.hint, structured=args.structured,
    )  # fmt: skip
    return Extraction(task=task, split=args.split, model=args.model, options=options,
                      samples=args.samples, sampling={**sampling, **_fields(args.extra_body)},
                      omit=tuple(sorted(set(omit))))  # fmt: skip


def _show(extraction: Any, examples: Sequence[Example]) -> int:
    from dss_jax.teacher.prompting import shown

    for example in examples:
        for job in extraction.jobs_of(example):
            print(f"--- {example.id}, sample {job.sample}\n{shown(job.body)}\n")
            break
    return 0


def _ask(args: argparse.Namespace, extraction: Any, examples: Sequence[Example]) -> int:
    """Estimates, asks, writes."""
    from dss_jax.cli import extract_tables
    from dss_jax.teacher import client, prices
    from dss_jax.teacher import extraction as stage
    from dss_jax.teacher.journal import Journal

    price = prices.find_prices(
        args.model, args.price_in, args.price_out, args.price_table,
        base_url=args.base_url, batch=args.batch,
    )  # fmt: skip
    if args.budget is not None and price(1, 1) is None:
        raise UsageError(
            "--budget needs prices: --price_in and --price_out, or --price_table. They are on the "
            "provider's page."
        )
    if args.out is None:  # A dry run before anything was asked.
        expected = _estimate(args, extraction, extraction.jobs(examples), price)
        extract_tables.print_estimate(args, expected, price)
        return 0
    with Journal(args.journal or args.out.with_name(args.out.name + ".journal")) as journal:
        missing = stage.missing(extraction, examples, journal, only_failed=args.only_failed)
        expected = _estimate(args, extraction, missing, price)
        if args.dry_run:
            extract_tables.print_estimate(args, expected, price)
            return 0
        ask = _server(args, extraction, examples, journal, price, over=_confirm(args, expected))
        progress = extract_tables.Progress(extraction, len(examples), expected.requests, price)
        try:
            summary = ask(stage.noting(extraction, journal, progress))
        finally:
            progress.close()
        if summary.stopped:
            print(
                f"stopped: {summary.stopped}. {summary.done:,} of {progress.total:,} requests are "
                f"done and kept in {journal.path}. The same command goes on from there."
            )
            return 130 if summary.stopped == "interrupted" else 1
        local = args.model.startswith("jax:")
        header = stage.write(
            extraction, examples, journal, args.out,
            price=price, prices=price.note, terms=args.terms,
            endpoint="" if local else client.host_of(args.base_url),
        )  # fmt: skip
    extract_tables.print_report(str(args.out), header, summary)
    return 1 if summary.failed and not (summary.answered or summary.reused) else 0


def _server(
    args: argparse.Namespace,
    extraction: Any,
    examples: Sequence[Example],
    journal: Any,
    price: Any,
    *,
    over: bool,
) -> Callable[[Any], Any]:
    """What asks: (progress) -> summary. Fails here if it could not work at all."""
    if args.model.startswith("jax:"):
        from dss_jax.teacher import jax_teacher

        teacher = jax_teacher.JaxTeacher(args.model, jax_teacher.TeacherOptions(
            batch_size=args.batch_size, input_length=args.input_length, dtype=args.dtype,
            fsdp=args.fsdp, vocabulary=args.vocabulary,
        ))  # fmt: skip
        return lambda progress: jax_teacher.ask(
            teacher, extraction.jobs(examples), journal, progress, only_failed=args.only_failed
        )
    if args.batch:
        from dss_jax.teacher.batch import Batches

        batches = Batches(journal, args.base_url, args.api_key_env)
        return lambda progress: batches.run(
            extraction.jobs(examples), progress, only_failed=args.only_failed
        )
    from dss_jax.teacher import client, extract
    from dss_jax.teacher import extraction as stage

    send = client.Client(args.base_url, args.api_key_env, args.timeout, args.concurrency)
    options = extract.RunOptions(
        concurrency=args.concurrency, rpm=args.rpm, tpm=args.tpm,
        max_attempts=args.max_attempts, only_failed=args.only_failed,
    )  # fmt: skip
    limit = None if over else _spending_limit(args.budget, price)
    return lambda progress: stage.ask(extraction, examples, journal, send, options, progress, limit)


def _estimate(args: argparse.Namespace, extraction: Any, jobs: Any, price: Any) -> Any:
    from dss_jax.teacher import prices

    answers = [len(e.rationale) + len(e.output) for e in extraction.prompt.exemplars]
    # The answer's own words ("So the answer is") are some tens of characters.
    length = (sum(answers) / len(answers) + 30 if answers else 200) / prices.CHARACTERS_PER_TOKEN
    return prices.estimate(
        (job.body for job in jobs), length, price,
        concurrency=args.concurrency, rpm=args.rpm, tpm=args.tpm,
    )  # fmt: skip


def _confirm(args: argparse.Namespace, expected: Any) -> bool:
    """Whether the user agreed to spend more than the budget.

    Raises:
      UsageError: the user did not, or cannot be asked.
    """
    if args.budget is None or expected.cost <= args.budget:
        return False
    text = f"this will cost about {expected.cost:,.2f} USD, more than --budget {args.budget:g}"
    if args.yes:
        print(text)
        return True
    if sys.stdin.isatty() and input(f"{text}. Go on? [y/N] ").strip().lower() in ("y", "yes"):
        return True
    raise UsageError(f"{text}. Nothing was sent. Raise --budget, ask for fewer rows, or add --yes.")


def _spending_limit(budget: float | None, price: Any) -> Any:
    """A check of what this run has spent; None without a budget."""
    if budget is None:
        return None

    def check(summary: Any) -> str | None:
        spent = price(summary.prompt_tokens, summary.completion_tokens)
        return f"the budget of {budget:g} USD is spent" if spent >= budget else None

    return check


def _from_release(args: argparse.Namespace, task: DistillationTask) -> int:
    from dss_jax.teacher import extraction as stage

    header = stage.from_release(task, args.split, args.from_release, args.out)
    from dss_jax.cli.tables import number, print_table

    counts = header.totals["statuses"]
    print_table(f"{args.out}", ("rows", ""), [[s, number(n)] for s, n in counts.items()])
    return 0
