"""`dss`: one file a command. Imports nothing heavy until the arguments are known to be right."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from dss_jax import __version__
from dss_jax.cli import ending
from dss_jax.core import log, machine, processes, signals
from dss_jax.core.errors import Diverged, UsageError
from dss_jax.core.texts import visible

COMMANDS = {
    "init": "make a task of a labelled table: CSV, JSONL, Parquet or a data set of the hub",
    "train": "train a student, and score it",
    "eval": "score a trained student",
    "predict": "label new rows with a trained student",
    "serve": "answer over HTTP with a student: labels, rationales, completions, a page",
    "prepare": "make the token store of a task",
    "extract": "ask an LLM for rationales and labels",
    "tasks": "list tasks; show examples and statistics",
    "config": "print the resolved configuration",
    "sweep": "train every cell of a grid: methods, sizes, seeds; go on after a stop",
    "frontier": "find the smallest model and the least data that reach a target",
    "ask": "whether rationales help a task, why, and how much data they save, in a given time",
    "report": "tables and figures of finished runs; a page with every answer",
    "replay": "repeat the step at which a run has diverged, and look at its rows",
    "fit": "whether a model fits a device, and with which mesh",
    "compile": "compile a training step for TPUs or GPUs that are not here; what it takes",
    "convert": "turn a checkpoint of Hugging Face, Orbax or T5X into another, or CTranslate2's",
    "vocabulary": "add tokens to a student's vocabulary",
    "push": "upload a student to the Hugging Face hub",
    "records": "look at what a teacher answered; filter, merge, export",
    "doctor": "check this installation: versions, devices, the T5X engine",
    "demo": "both methods on the embedded data set, by its share: a table and curves",
}
"""Command -> what it does. Each is a module here with `add_flags(parser)` and `main(args)`, which
may give an exit status."""

STEPS = ("train", "eval", "replay")
"""Commands that compute the same again and again."""


class Parser(argparse.ArgumentParser):
    """Of a command's flags; what is wrong with them is a UsageError."""

    def error(self, message: str) -> NoReturn:
        from dss_jax.core.hints import wrong_arguments

        raise wrong_arguments(self, message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; without `arguments`, as the program, which may end the process.

    Returns:
      The exit status: 0; 1 for a run that has diverged; 2 for a mistake that the user can fix; 75
      where another process writes into the run's folder; and those in `core.signals`.
    """
    if arguments is not None:
        return _main(arguments)
    if "_ARGCOMPLETE" in os.environ:
        from dss_jax.cli.completion import complete

        complete(COMMANDS)
    if sys.argv[1:] and sys.argv[1] in STEPS and machine.computes_on_cpus():
        machine.keep_freed_memory()  # Before the first thread.
    with ending.ends_soon():
        try:
            status = _main(sys.argv[1:])
        except BrokenPipeError:
            status = 0
        finally:
            _flush()
    # Who has saved waits for the others, where there are several processes: JAX would end them.
    leaves = signals.told and status in (signals.INTERRUPTED, signals.TERMINATED)
    alone = processes.count() == 1
    if leaves or (alone and status in (signals.INTERRUPTED, signals.SAVED)):
        ending.leave(status)
    return status


def _main(given: Sequence[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print("usage: dss COMMAND [flags]   (dss COMMAND --help shows its flags)\n")
        print(*(f"  {name:<9} {text}" for name, text in COMMANDS.items()), sep="\n")
        print("\n  --version\n\nFirst steps: make demo. Documentation: docs/.")
        return 0
    if given[0] == "--version":
        print(f"dss-jax {__version__}")
        return 0
    name = given[0]
    signals.told.clear()
    try:
        if name not in COMMANDS:
            from dss_jax.core.hints import unknown_command

            raise unknown_command(given, COMMANDS)
        from dss_jax.cli import options

        module = import_module(f"dss_jax.cli.{name}")
        parser = Parser(f"dss {name}", None, module.__doc__, allow_abbrev=False)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        options.add_command_flags(parser, module)
        args = options.parse(parser, given[1:])
        with log.shown(verbose=args.verbose):
            return module.main(args) or 0
    except KeyboardInterrupt:
        return ending.said(signal.SIGINT)
    except SystemExit as stop:
        if stop.code != signals.TERMINATED:
            raise
        return ending.said(signal.SIGTERM)
    except Exception as error:
        if signals.told:
            return ending.said(signals.told[0])
        return _failed(error)


def _failed(error: Exception) -> int:
    """The status of a command that ended by an error, which is said; raises what is none of the
    user's.
    """
    if isinstance(error, UsageError | Diverged):
        print(f"dss: error: {error}", file=sys.stderr)
        return error.status
    if isinstance(error, BrokenPipeError):
        return 0
    from dss_jax.core.disk import trouble

    if (said := trouble(error, None)) is None:
        raise error
    print(f"dss: error: {visible(said)}", file=sys.stderr)
    return 1


def _flush() -> None:
    """Writes out what was printed. Where the reader (head, less) has gone, Python would complain at
    exit, too.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
