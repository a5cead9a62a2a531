"""Asks an LLM for rationales and labels: any server that speaks OpenAI's protocol.

  dss extract --task cqa --split train --model gpt-4o-mini --out cqa_train.jsonl
  dss extract --task cqa --split train --model llama3.2 --base_url http://localhost:11434/v1 \
      --out cqa_train.jsonl
  dss extract --task cqa --split test --from_release DIR --out cqa_test.jsonl

Every reply is kept in a journal beside the output as it comes: a second run asks only for what is
missing. The key comes from the environment. docs/extract.md.
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dss_jax.core import registry
from dss_jax.core.errors import UsageError
from dss_jax.core.types import SPLITS, DistillationTask, Example

if TYPE_CHECKING:
    from dss_jax.teacher.asking import Teacher

OMITTED = ("stop", "temperature", "max_tokens")
"""Fields that some models refuse and the others need."""

FIXED = ("model", "messages", "prompt", "n", "stream", "response_format")
"""Fields that --extra_body may not hold: what is asked, and how answers are read."""

COUNTS = (
    "limit samples max_tokens concurrency max_attempts show_prompt rpm tpm top_k batch_size fsdp"
)
"""Flags that must be at least 1."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    add = parser.add_argument
    add("--task", required=True, help="a task file's name: see `dss tasks`")
    add("--split", choices=SPLITS, default="train", help="default: train")
    add("--model", help="the teacher, as its server knows it; or jax:CHECKPOINT")
    add("--out", type=Path, help="the record file, JSONL")
    add("--data_dir", help="folder of the data (also: DSS_DATA_DIR)")
    add("--task_dir", action="append", default=[], help="folder of task files")
    add("--limit", type=int, help="only the first rows")
    add("--shard", metavar="I/N", help="every N-th row from the I-th (from 0)")
    release = "no LLM: parse the completions of the authors' release"
    add("--from_release", metavar="DIR", help=release)
    add = parser.add_argument_group("prompt").add_argument
    add("--show_prompt", type=int, metavar="N", help="print N requests; send none")
    add("--exemplars", type=int, help="how many of the task's (default: all)")
    add("--exemplar_seed", type=int, help="shuffle them (default: the file's order)")
    add("--form", choices=("chat", "completion"), default="chat")
    add("--hint", action="store_true", help="show the teacher the gold label")
    add("--structured", action="store_true", help="ask for JSON by a schema")
    thoughts = "take a reasoning model's thoughts for its rationale"
    add("--thoughts_as_rationale", action="store_true", help=thoughts)
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
    _add_sending_flags(parser)


def _add_sending_flags(parser: argparse.ArgumentParser) -> None:
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
    of_jax = parser.add_argument_group("a teacher of T5's family: --model jax:CHECKPOINT")
    add = of_jax.add_argument
    add("--batch_size", type=int, default=32, help="prompts at once (default 32)")
    add("--input_length", type=int, default=2048, help="longest prompt in tokens (default 2,048)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--fsdp", type=int, default=1, help="devices that share the parameters (default 1)")
    add("--vocabulary", help="SentencePiece file, where the checkpoint has none")


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    if rest:
        raise UsageError(f"unknown argument {rest[0]!r}. See {parser.prog} --help.")
    _check(args)
    task = registry.load_task(args.task, args.task_dir)
    if args.from_release:
        return _from_release(args, task)

    from dss_jax.data import rows
    from dss_jax.teacher.extraction import learned_labels, shard_of

    whole = rows.examples(task, args.split, args.data_dir)
    examples = shard_of(whole[: args.limit], args.shard)
    if not examples:
        raise UsageError("no row is left to ask about. See --limit and --shard.")
    extraction = _extraction(args, task)
    if labels := learned_labels(task, _rows_with_gold(args, task, whole)):
        extraction = replace(extraction, labels=labels)
        print(f"labels that a teacher may answer, from the gold ones: {', '.join(labels)}")
    if args.show_prompt is not None:
        from dss_jax.teacher.prompting import shown

        for example in examples[: args.show_prompt]:
            first = next(extraction.requests([example]))
            print(f"--- {example.id}, sample {first.sample}\n{shown(first.body)}\n")
        return 0
    return _ask(args, extraction, examples)


def _rows_with_gold(
    args: argparse.Namespace, task: DistillationTask, examples: Sequence[Example]
) -> Iterator[Example]:
    """The rows of train where they are here, else those that are asked about; read when needed."""
    from dss_jax.data import rows

    if args.split != "train":
        with contextlib.suppress(UsageError):
            examples = rows.examples(task, "train", args.data_dir)
    yield from examples


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for flags that do not go together, before anything is read."""
    for name, least in [*((count, 1) for count in COUNTS.split()), ("exemplars", 0)]:
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
    if _is_local(args):
        for name in ("omit", "extra_body", "batch", "structured", "base_url"):
            if getattr(args, name):
                raise UsageError(f"--{name} is for servers; {args.model} runs here.")


def _is_local(args: argparse.Namespace) -> bool:
    return (args.model or "").startswith("jax:")


def _fields(text: str | None) -> dict[str, Any]:
    """The object of --extra_body; empty where it is not given.

    Raises:
      UsageError: it is none, or holds a field that may not be set so.
    """
    try:
        fields = json.loads("{}" if text is None else text)
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


def _extraction(args: argparse.Namespace, task: DistillationTask) -> Any:
    from dss_jax.teacher.extraction import Extraction
    from dss_jax.teacher.prompting import PromptOptions

    temperature = args.temperature
    if temperature is None:
        temperature = 0.0 if args.samples == 1 else 0.7
    if args.samples > 1 and temperature == 0:
        raise UsageError(f"--samples {args.samples} at --temperature 0 are all the same.")
    sampling = {"temperature": temperature, args.max_tokens_field: args.max_tokens}
    given = {name: getattr(args, name) for name in ("top_p", "top_k", "seed")}
    sampling |= {name: value for name, value in given.items() if value is not None}
    # --omit max_tokens means the limit, whatever its name.
    omit = {args.max_tokens_field if name == "max_tokens" else name for name in args.omit}
    layout = _named(args, PromptOptions) | {"order_seed": args.exemplar_seed}
    if _is_local(args):
        layout["form"] = "completion"
    what = _named(args, Extraction) | {"task": task, "omit": tuple(sorted(omit))}
    sampling |= _fields(args.extra_body)
    return Extraction(**what, options=PromptOptions(**layout), sampling=sampling)


def _ask(args: argparse.Namespace, extraction: Any, examples: Sequence[Example]) -> int:
    """Estimates, asks, writes."""
    from dss_jax.cli import extract_tables
    from dss_jax.teacher import client, prices
    from dss_jax.teacher.asking import ExtractionRun
    from dss_jax.teacher.extraction import write
    from dss_jax.teacher.journal import Journal

    server = prices.HOSTED if args.base_url is None else args.base_url
    given = (args.price_in, args.price_out, args.price_table)
    price = prices.find_prices(args.model, *given, base_url=server, batch=args.batch)
    if args.budget is not None and price(1, 1) is None:
        raise UsageError(
            "--budget needs prices: --price_in and --price_out, or --price_table. They are on the "
            "provider's page."
        )
    requests = extraction.requests(examples)
    if args.out is None:  # A dry run before anything was asked.
        extract_tables.print_estimate(args, _estimate(args, extraction, requests, price), price)
        return 0
    with Journal(args.journal or args.out.with_name(args.out.name + ".journal")) as journal:
        chunks = ExtractionRun(journal, only_failed=args.only_failed).missing(requests)
        expected = _estimate(args, extraction, itertools.chain.from_iterable(chunks), price)
        if args.dry_run:
            extract_tables.print_estimate(args, expected, price)
            return 0
        limit = None if _confirm(args, expected) else _spending_limit(args, price)
        teacher = _teacher(args, server)
        bar = extract_tables.ExtractionBar(extraction, len(examples), expected.requests, price)
        run = ExtractionRun(journal, only_failed=args.only_failed, extraction=extraction.sha256)
        run.on_progress, run.may_go_on = bar, limit
        with contextlib.closing(bar):
            progress = teacher.ask(extraction.requests(examples), run)
        if progress.stopped:
            print(
                f"stopped: {progress.stopped}. {progress.done:,} of {bar.total:,} requests are "
                f"done and kept in {journal.path}. The same command goes on from there."
            )
            return 130 if progress.stopped == "interrupted" else 1
        endpoint = "" if _is_local(args) else client.host_of(server)
        about = {"prices": price.note, "terms": args.terms, "endpoint": endpoint}
        header = write(extraction, examples, journal, args.out, price=price, **about)
    extract_tables.print_report(str(args.out), header, progress)
    return 1 if progress.failed and not (progress.answered or progress.reused) else 0


def _teacher(args: argparse.Namespace, server: str) -> "Teacher":
    """Who is asked. Fails here if it could not work at all."""
    if _is_local(args):
        from dss_jax.teacher.jax_teacher import JaxTeacher

        names = ("batch_size", "input_length", "dtype", "fsdp", "vocabulary")
        return JaxTeacher(args.model, **{name: getattr(args, name) for name in names})
    if args.batch:
        from dss_jax.teacher.batch import BatchTeacher

        return BatchTeacher(server, args.api_key_env)
    from dss_jax.teacher.asking import SendOptions, ServerTeacher
    from dss_jax.teacher.client import Client

    client = Client(server, args.api_key_env, args.timeout, args.concurrency)
    return ServerTeacher(client, SendOptions(**_named(args, SendOptions)))


def _named(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """The flags that have the names of a dataclass's fields."""
    names = [field.name for field in fields(options)]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _estimate(args: argparse.Namespace, extraction: Any, requests: Any, price: Any) -> Any:
    from dss_jax.teacher import prices

    answers = [len(e.rationale) + len(e.output) for e in extraction.prompt.exemplars]
    # The answer's own words ("So the answer is") are some tens of characters.
    length = (sum(answers) / len(answers) + 30 if answers else 200) / prices.CHARACTERS_PER_TOKEN
    bodies = (request.body for request in requests)
    limits = {"rpm": args.rpm, "tpm": args.tpm}
    return prices.estimate(bodies, length, price, concurrency=args.concurrency, **limits)


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


def _spending_limit(args: argparse.Namespace, price: Any) -> Callable[[Any], str | None] | None:
    """A check of what this run has spent; None without a budget, or where none can be stopped."""
    if args.budget is None or args.batch or _is_local(args):
        return None

    def may_go_on(progress: Any) -> str | None:
        spent = price(progress.prompt_tokens, progress.completion_tokens)
        return f"the budget of {args.budget:g} USD is spent" if spent >= args.budget else None

    return may_go_on


def _from_release(args: argparse.Namespace, task: DistillationTask) -> int:
    from dss_jax.cli.tables import number, print_table
    from dss_jax.data import rows
    from dss_jax.records.files import write_records
    from dss_jax.teacher.extraction import from_release

    completions = rows.examples_with_completions(task, args.split, args.from_release)
    header, records = from_release(task, args.split, completions)
    write_records(args.out, header, records)
    counts = header.totals["statuses"]
    print_table(f"{args.out}", ("rows", ""), [[s, number(n)] for s, n in counts.items()])
    return 0
