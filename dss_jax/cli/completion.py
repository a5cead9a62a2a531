"""Completion of commands, flags and names in the shell, by argcomplete. Imported by it alone:

eval "$(register-python-argcomplete dss)"
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from dss_jax.cli import gin_config, options
from dss_jax.core import config, registry
from dss_jax.core.t5_config import DECODE_METHODS
from dss_jax.core.types import CHECKPOINT_FORMATS, ENGINES, SPLITS

VALUES: dict[str, Callable[[], Iterable[str]]] = {
    "task": registry.task_names,
    "extra_task": registry.task_names,
    "model": lambda: gin_config.gin_names("models"),
    "method": lambda: gin_config.gin_names("methods"),
    "split": lambda: SPLITS,
    "decode": lambda: DECODE_METHODS,
    "engine": lambda: (*ENGINES, "ctranslate2"),
    "from_": lambda: CHECKPOINT_FORMATS,
}
"""Flag -> what it takes."""


def complete(commands: Mapping[str, str]) -> None:
    """Answers the shell and ends the process."""
    import argcomplete

    parser = argparse.ArgumentParser("dss")
    below = parser.add_subparsers()
    typed = os.environ.get("COMP_LINE", "").split()
    for name, text in commands.items():
        own = below.add_parser(name, help=text)
        if name in typed[1:2]:  # The others are not imported.
            add_flags(own, name)
        if name in typed[1:2] and typed[-1].startswith("--gin."):
            for setting in config.SETTINGS:
                own.add_argument(f"--gin.{setting}")
    argcomplete.autocomplete(parser, always_complete_options=False)


def add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """The flags of a command, with what they take."""
    options.add_command_flags(parser, import_module(f"dss_jax.cli.{command}"))
    for action in parser._actions:
        if action.dest in VALUES:
            made: Any = action
            made.completer = lambda values=VALUES[action.dest], **_: [*values()]
