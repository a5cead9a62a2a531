"""What `dss extract` shows: estimate, progress, report."""

import argparse
import sys
from typing import Any

from tqdm import tqdm

from dss_jax.cli.tables import number, print_table
from dss_jax.records.records import Header
from dss_jax.teacher.asking import ExtractionProgress
from dss_jax.teacher.extraction import Extraction
from dss_jax.teacher.prices import CHARACTERS_PER_TOKEN, SECONDS_PER_REQUEST, Estimate, Prices

SHOW_EVERY, LOG_EVERY = 0.5, 30.0
"""Seconds between states of the bar: on a terminal; in a file, where each is a line."""

SHOWN_REASONS = 5
"""At most so many different reasons of failures."""


def print_estimate(args: argparse.Namespace, expected: Estimate, price: Prices) -> None:
    """Prints tokens, cost and time of the requests to send."""
    rows = {
        "requests to send": expected.requests,
        "prompt tokens, about": expected.prompt_tokens,
        "completion tokens, about": expected.completion_tokens,
        "cost, about": "not known" if expected.cost is None else f"{expected.cost:,.2f} USD",
        "prices": price.note or price.source,
        "time, about": "up to a day" if args.batch else f"{expected.seconds / 60:,.0f} minutes",
    }
    each = f"{CHARACTERS_PER_TOKEN} characters a token; answers as long as the exemplars'"
    note = f"{each}; {SECONDS_PER_REQUEST:g} seconds a request."
    print_table(f"{args.task}, {args.split}, {args.model}", ("", ""), [*rows.items()], note=note)


class ExtractionBar:
    """A bar of requests with tokens, cost so far and in the end, and errors.

    Args:
      extraction: what is asked.
      rows: how many rows.
      to_send: requests that the journal has no reply to; rate and time left are those of these.
      price: of the tokens.
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

    def __call__(self, progress: ExtractionProgress) -> None:
        """Shows the state."""
        sent = progress.answered + progress.failed
        self._bar.update(sent + max(self._there, progress.reused) - self._bar.n)
        self._bar.set_postfix(self.state(progress), refresh=False)

    def state(self, progress: ExtractionProgress) -> dict[str, Any]:
        """What stands behind the bar; the cost in the end is that of as many tokens a request."""
        tokens = progress.prompt_tokens, progress.completion_tokens
        shown: dict[str, Any] = {"tokens": f"{sum(tokens):,}"}
        spent = self._price(*tokens)
        if spent is not None and progress.answered:
            left = self.total - self._bar.n
            in_the_end = spent * (progress.answered + left) / progress.answered
            shown["USD"] = f"{spent:.2f} of about {in_the_end:.2f}"
        return shown | {"retries": progress.retries, "failed": progress.failed}

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def print_report(out: str, header: Header, progress: ExtractionProgress) -> None:
    """Prints the totals of a record file, and what this run did."""
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
    for reason, count in progress.reasons.most_common(SHOWN_REASONS):
        print(f"failed, {count:,}: {reason}")
    if progress.failed:
        print("The same command asks again for the failed ones; --only_failed for them alone.")
