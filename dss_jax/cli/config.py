"""Print the resolved configuration, as gin text that gives the same run again.

dss config --task cqa --method dss --model t5_1_1_base
"""

import argparse
from collections.abc import Sequence

from dss_jax.cli import options
from dss_jax.core import config


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_run_flags(parser)
    parser.set_defaults(needs_model=True)


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    print(config.to_gin(options.resolve(args, rest, parser).run), end="")
    return 0
