"""Print the resolved configuration, as gin text that gives the same run again.

dss config --task cqa --method dss --model t5_1_1_base

It takes every flag of `dss train`.
"""

import argparse
from collections.abc import Sequence

from dss_jax.cli import options, train
from dss_jax.core import config


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    train.add_flags(parser)


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    print(config.to_gin(options.resolve(args, rest, parser).run), end="")
    return 0
