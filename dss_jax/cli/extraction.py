"""What `dss extract` does with its flags: estimate, ask, write, and what it shows of that."""

import argparse
import contextlib
import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from tqdm import tqdm

from dss_jax.cli.tables import number, print_table, say
from dss_jax.core import strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.table import shard_numbers
from dss_jax.core.types import DistillationTask, Example
from dss_jax.data import rows
from dss_jax.data.check import check_labels_asked
from dss_jax.records.files import refused, write_records
from dss_jax.records.ids import lines_with_ids
from dss_jax.records.records import Header
from dss_jax.teacher import asking, client, prices, prompting
from dss_jax.teacher import extraction as recipes
from dss_jax.teacher.extraction import Extraction
from dss_jax.teacher.journal import Journal, Request
from dss_jax.teacher.prices import Prices

FIXED = ("model", "messages", "prompt", "n", "stream", "response_format")
"""Fields that --extra_body may not hold: what is asked, and how answers are read."""

SHOW_EVERY, LOG_EVERY = 0.5, 30.0
"""Seconds between states of the bar: on a terminal; in a file, where each is a line."""

SHOWN_REASONS = 5
"""At most so many different reasons of failures."""


class Asking(NamedTuple):
    """What is asked about one split, at these prices."""

    args: argparse.Namespace
    extraction: Extraction
    examples: Sequence[Example]
    price: Prices


def main(several: Sequence[argparse.Namespace], task: DistillationTask) -> int:
    """Shows prompts, or asks, for one split after another; all of them share a budget. Returns the
    exit status: that of the first split that does not end well, which is the last one then.
    """
    # All are read, and counted, before anything is paid for.
    read = [_rows(args, task) for args in several]
    asked = [_asking(args, task, whole) for args, whole in zip(several, read, strict=True)]
    if several[0].show_prompt is not None:
        for args, extraction, examples, _ in asked:
            for example in examples[: args.show_prompt]:
                first = next(extraction.requests([example]))
                say(f"--- {example.id}, sample {first.sample}\n{prompting.shown(first.body)}\n")
        return 0
    every = [*itertools.chain.from_iterable(read)]
    check_labels_asked(task, every, exemplars=several[0].exemplars != 0)
    expected = [_expected(one) for one in asked]
    if several[0].dry_run:
        for one, own in zip(asked, expected, strict=True):
            _print_estimate(one, own)
        if len(asked) > 1 and expected[0].cost is not None:
            say(f"all together, about: {sum(own.cost or 0 for own in expected):,.2f} USD")
        return 0
    agreed = len(asked) > 1 and _confirm(several[0], sum(own.cost or 0 for own in expected), "")
    left = several[0].budget
    for one, own in zip(asked, expected, strict=True):
        one.args.budget, one.args.spent = left, 0.0
        if status := _ask(one, own, agreed):
            return status
        left = None if left is None else max(0.0, left - one.args.spent)
    if len(several) > 1:
        say(f"for dss train: --rationales {','.join(str(args.out) for args in several)}")
    return 0


def _rows(args: argparse.Namespace, task: DistillationTask) -> list[Example]:
    left: list[str] | None = [] if args.skip else None
    found = rows.examples(task, args.split, args.data_dir, left)
    if left:
        say(f"{args.split}: {number(len(left))} rows are left out that cannot be used")
    return found


def _asking(args: argparse.Namespace, task: DistillationTask, whole: list[Example]) -> Asking:
    examples = _chosen(args, whole)
    extraction = _extraction(args, task)
    if labels := recipes.learned_labels(task, _rows_with_gold(args, task, whole)):
        extraction = replace(extraction, labels=labels)
        say(f"labels that a teacher may answer, from the gold ones: {', '.join(labels)}")
    given = (args.price_in, args.price_out, args.price_table)
    price = prices.find_prices(args.model, *given, base_url=_server(args), batch=args.batch)
    if args.budget is not None and price(1, 1) is None:
        raise UsageError(
            "--budget needs prices: --price_in and --price_out, or --price_table. They are on the "
            "provider's page."
        )
    return Asking(args, extraction, examples, price)


def _chosen(args: argparse.Namespace, whole: Sequence[Example]) -> Sequence[Example]:
    """Those of --ids, --limit and --shard."""
    if args.ids is not None:
        ids = dict.fromkeys(line["id"] for line in lines_with_ids(args.ids))
        here = {example.id for example in whole}
        known = [name for name in ids if name in here]
        # The first that were chosen, in the order of the rows.
        first = {*known[: args.limit]}
        whole = [example for example in whole if example.id in first]
        if other := len(ids) - len(known):
            say(f"{args.ids}: {other:,} of {len(ids):,} ids are of no row of {args.split}")
    index, count = shard_numbers(args.shard)
    if found := whole[: args.limit][index::count]:
        return found
    raise UsageError("no row is left to ask about. See --ids, --limit and --shard.")


def _server(args: argparse.Namespace) -> str:
    return prices.HOSTED if args.base_url is None else str(args.base_url)


def _journal(args: argparse.Namespace) -> Journal:
    return Journal(args.journal or args.out.with_name(args.out.name + ".journal"))


def _rows_with_gold(
    args: argparse.Namespace, task: DistillationTask, examples: Sequence[Example]
) -> Iterator[Example]:
    """The rows of train where they are here, else those that are asked about; read when needed."""
    if args.split != "train":
        with contextlib.suppress(UsageError):
            examples = rows.examples(task, "train", args.data_dir, [] if args.skip else None)
    yield from examples


def from_release(args: argparse.Namespace, task: DistillationTask) -> None:
    left: list[str] | None = [] if args.skip else None
    completions = rows.examples_with_completions(task, args.split, args.from_release, left)
    asked = {example.id for example in _chosen(args, [e for e, _ in completions])}
    released = (c for c in completions if c[0].id in asked)
    header, records = recipes.from_release(task, args.split, released)
    write_records(args.out, header, records)
    print_table(f"{args.out}", ("rows", ""), [*header.totals["statuses"].items()])


def _fields(text: str | None) -> dict[str, Any]:
    """The object of --extra_body; empty where it is not given. Raises UsageError for one that it
    may not hold.
    """
    try:
        fields = strict_json.loads("{}" if text is None else text, parse_constant=refused)
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


def _extraction(args: argparse.Namespace, task: DistillationTask) -> Extraction:
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
    layout = _named(args, prompting.PromptOptions) | {"order_seed": args.exemplar_seed}
    if args.local:
        layout["form"] = "completion"
    what = _named(args, Extraction) | {"task": task, "omit": tuple(sorted(omit))}
    sampling |= _fields(args.extra_body)
    return Extraction(**what, options=prompting.PromptOptions(**layout), sampling=sampling)


def _named(args: argparse.Namespace, options: type) -> dict[str, Any]:
    names = [field.name for field in fields(options)]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _ask(asked: Asking, expected: prices.Estimate, agreed: bool) -> int:
    """`agreed`: the user will pay what it takes."""
    args, extraction, examples, price = asked
    with _journal(args) as journal:
        nothing = f"of {args.split} "
        free = agreed or _confirm(args, expected.cost or 0, nothing)

        def may_go_on(progress: asking.ExtractionProgress) -> str | None:
            spent = price(progress.prompt_tokens, progress.completion_tokens)
            return f"the budget of {args.budget:g} USD is spent" if spent >= args.budget else None

        # A batch, and what runs here, cannot be stopped by what was spent.
        limited = not free and args.budget is not None and not (args.batch or args.local)
        teacher = _teacher(args)
        bar = ExtractionBar(extraction, len(examples), expected.requests, price)
        run = asking.ExtractionRun(
            journal, only_failed=args.only_failed, extraction=extraction.sha256
        )
        run.on_progress, run.may_go_on = bar, may_go_on if limited else None
        with contextlib.closing(bar):
            progress = teacher.ask(extraction.requests(examples), run)
        args.spent = price(progress.prompt_tokens, progress.completion_tokens) or 0.0
        if progress.stopped:
            say(
                f"stopped: {progress.stopped}. {progress.done:,} of {bar.total:,} requests are "
                f"done and kept in {journal.path}. The same command goes on from there."
            )
            return 130 if progress.stopped == "interrupted" else 1
        endpoint = "" if args.local else client.host_of(_server(args))
        about = {"prices": price.note, "terms": args.terms, "endpoint": endpoint}
        header = recipes.write(extraction, examples, journal, args.out, price=price, **about)
    _print_report(str(args.out), header, progress)
    return 1 if progress.failed and not (progress.answered or progress.reused) else 0


def _teacher(args: argparse.Namespace) -> asking.Teacher:
    """Who is asked. Fails here if it could not work at all."""
    server = _server(args)
    if args.local:
        names = ("batch_size", "input_length", "dtype", "fsdp", "vocabulary")
        return _local_teacher(args.model, **{name: getattr(args, name) for name in names})
    if args.batch:
        from dss_jax.teacher.batch import BatchTeacher

        return BatchTeacher(server, args.api_key_env)
    sender = client.Client(server, args.api_key_env, args.timeout, args.concurrency)
    return asking.ServerTeacher(sender, asking.SendOptions(**_named(args, asking.SendOptions)))


@functools.cache
def _local_teacher(name: str, **options: Any) -> asking.Teacher:
    """Opened once for all splits."""
    from dss_jax.teacher.jax_teacher import JaxTeacher

    return JaxTeacher(name, **options)


def _expected(asked: Asking) -> prices.Estimate:
    """Of the requests that the journal has no reply to."""
    args, extraction, examples, price = asked
    answers = [len(e.rationale) + len(e.output) for e in extraction.prompt.exemplars]
    # The answer's own words ("So the answer is") are some tens of characters.
    length = (sum(answers) / len(answers) + 30 if answers else 200) / prices.CHARACTERS_PER_TOKEN
    limits = {"concurrency": args.concurrency, "rpm": args.rpm, "tpm": args.tpm}
    requests: Iterable[Request] = extraction.requests(examples)
    if args.out is None:  # A dry run before anything was asked.
        return prices.estimate((r.body for r in requests), length, price, **limits)
    with _journal(args) as journal:
        run = asking.ExtractionRun(journal, only_failed=args.only_failed)
        missing = itertools.chain.from_iterable(run.missing(requests))
        return prices.estimate((r.body for r in missing), length, price, **limits)


def _confirm(args: argparse.Namespace, cost: float, nothing: str) -> bool:
    """Whether the user agreed to spend more than the budget; raises UsageError where not, with
    `nothing` for what was not sent.
    """
    if args.budget is None or cost <= args.budget:
        return False
    text = f"this will cost about {cost:,.2f} USD, more than --budget {args.budget:g}"
    if args.yes:
        say(text)
        return True
    if sys.stdin.isatty() and input(f"{text}. Go on? [y/N] ").strip().lower() in ("y", "yes"):
        return True
    fix = "Raise --budget, ask for fewer rows, or add --yes."
    raise UsageError(f"{text}. Nothing {nothing}was sent. {fix}")


def _print_estimate(asked: Asking, expected: prices.Estimate) -> None:
    args, price = asked.args, asked.price
    rows = {
        "requests to send": expected.requests,
        "prompt tokens, about": expected.prompt_tokens,
        "completion tokens, about": expected.completion_tokens,
        "cost, about": "not known" if expected.cost is None else f"{expected.cost:,.2f} USD",
        "prices": price.note or price.source,
        "time, about": "up to a day" if args.batch else f"{expected.seconds / 60:,.0f} minutes",
    }
    each = f"{prices.CHARACTERS_PER_TOKEN} characters a token; answers as long as the exemplars'"
    note = f"{each}; {prices.SECONDS_PER_REQUEST:g} seconds a request."
    print_table(f"{args.task}, {args.split}, {args.model}", ("", ""), [*rows.items()], note=note)


class ExtractionBar:
    """A bar of requests with tokens, cost so far and in the end, and errors. Rate and time left are
    those of the requests `to_send`, that the journal has no reply to.
    """

    def __init__(self, extraction: Extraction, rows: int, to_send: int, price: Prices) -> None:
        self.total, self._price = rows * extraction.samples, price
        self._there = self.total - to_send
        self._bar = tqdm(
            total=self.total,
            initial=self._there,
            unit="request",
            desc=extraction.split,
            smoothing=0,
            mininterval=SHOW_EVERY if sys.stderr.isatty() else LOG_EVERY,
        )
        self.close = self._bar.close

    def __call__(self, progress: asking.ExtractionProgress) -> None:
        sent = progress.answered + progress.failed
        self._bar.update(sent + max(self._there, progress.reused) - self._bar.n)
        self._bar.set_postfix(self.state(progress), refresh=False)

    def state(self, progress: asking.ExtractionProgress) -> dict[str, Any]:
        """What stands behind the bar; the cost in the end is that of as many tokens a request."""
        tokens = progress.prompt_tokens, progress.completion_tokens
        shown: dict[str, Any] = {"tokens": f"{sum(tokens):,}"}
        spent = self._price(*tokens)
        if spent is not None and progress.answered:
            left = self.total - self._bar.n
            in_the_end = spent * (progress.answered + left) / progress.answered
            shown["USD"] = f"{spent:.2f} of about {in_the_end:.2f}"
        return shown | {"retries": progress.retries, "failed": progress.failed}


def _print_report(out: str, header: Header, progress: asking.ExtractionProgress) -> None:
    totals = dict(header.totals)
    statuses = totals.pop("statuses")
    rows: dict[str, Any] = {
        name.replace("_", " "): number(value, 4 if name == "cost_usd" else 1)
        for name, value in totals.items()
    }
    rows |= {"prices": header.prices} if header.prices else {}
    rows |= {f"rows: {status}": count for status, count in statuses.items()}
    rows |= {"sent now": progress.answered, "taken from the journal": progress.reused}
    rows["retries now"] = progress.retries
    print_table(out, ("", ""), [*rows.items()])
    if statuses and not statuses.get("ok"):
        say(f"No reply can be trained on. What they say: dss records show {out}")
    for reason, count in progress.reasons.most_common(SHOWN_REASONS):
        say(f"failed, {count:,}: {reason}")
    if progress.failed:
        say("The same command asks again for the failed ones; --only_failed for them alone.")
