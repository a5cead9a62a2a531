"""Tables and figures of finished runs: means, errors, tests, and how much data a method needs.

dss report runs/words                a sweep, or any folder with runs in it
dss report runs/words --html         with a page to browse every answer
dss report runs/cqa --published      the paper's numbers beside
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dss_jax.cli import options
from dss_jax.cli.tables import print_table, say
from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError

if TYPE_CHECKING:
    from dss_jax.report.report import Report


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", metavar="DIR", type=Path, help="folder with runs")
    add("--out", type=Path, metavar="DIR", help="default: DIR/report")
    add("--split", default="test", help="test (default) or validation")
    add("--min_seeds", type=int, default=3, metavar="N", help="mark cells with fewer (3)")
    add("--published", action="store_true", help="the numbers that the paper prints beside")
    add("--html", action="store_true", help="one page with every answer to every test item")


def main(args: argparse.Namespace) -> None:
    split = options.split_of(args.split)
    if split not in ("validation", "test"):
        raise UsageError(f"--split must be test or validation, not {args.split!r}.")
    at_least("--min_seeds", args.min_seeds, 1)

    from dss_jax.report import report
    from dss_jax.report.found_runs import View

    view = View(split, args.min_seeds, args.published)
    show(report.write(args.folder, args.out, view, html=args.html))


def show(made: "Report", tables: bool = True) -> None:
    for table in made.tables if tables else ():
        print_table(table.title, table.header, table.rows, note=table.note)
    for file in made.files:
        say(file)
