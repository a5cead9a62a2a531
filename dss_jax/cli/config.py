"""Print the resolved configuration, as gin text that gives the same run again.

dss config --task cqa --method dss --model t5_1_1_base

It takes every flag of `dss train`.
"""

import argparse

from dss_jax.cli import options, train
from dss_jax.core import config

add_flags = train.add_flags


def main(args: argparse.Namespace) -> None:
    print(config.to_gin(options.resolve(args).run), end="")
