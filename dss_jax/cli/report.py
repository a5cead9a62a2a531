"""Tables and figures of finished runs: means, errors, tests, and how much data a method needs.

dss report runs/words                a sweep, or any folder with runs in it
dss report runs/words --html         with a page to browse every answer
dss report runs/cqa --published      the paper's numbers beside
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError

if TYPE_CHECKING:
    from dss_jax.report.report import Report


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder with runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: DIR/report")
    parser.add_argument("--split", default="test", help="test (default) or validation")
    parser.add_argument(
        "--min_seeds", type=int, default=3, metavar="N", help="mark cells with fewer (3)"
    )
    parser.add_argument(
        "--published", action="store_true", help="the numbers that the paper prints beside"
    )
    parser.add_argument(
        "--html", action="store_true", help="one page with every answer to every test item"
    )


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    from dss_jax.cli.options import gin_bindings

    gin_bindings(rest, parser)  # Raises for what is no flag.
    split = {"valid": "validation"}.get(args.split, args.split)
    if split not in ("validation", "test"):
        raise UsageError(f"--split must be test or validation, not {args.split!r}.")
    at_least("--min_seeds", args.min_seeds, 1)

    from dss_jax.report import report

    made = report.write(
        args.folder,
        args.out,
        split=split,
        min_seeds=args.min_seeds,
        with_published=args.published,
        html=args.html,
    )
    show(made)
    return 0


def show(made: "Report") -> None:
    """Prints the tables of a report, and its files."""
    from dss_jax.cli.tables import print_table

    for table in made.tables:
        print_table(table.title, table.header, table.rows, note=table.note)
    for file in made.files:
        print(file)
