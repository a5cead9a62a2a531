"""What is said to who gives something that another command or flag takes. Seldom imported."""

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from dss_jax.core.config import SETTINGS
from dss_jax.core.errors import UsageError, nearest, unknown_name
from dss_jax.core.table import FORMS

TABLES = (*FORMS, ".xlsx")
"""Endings of files with rows."""

NAMES_ELSEWHERE = {
    "Data.batch_size": "batch per_device_train_batch_size",
    "Data.input_length": "max_input_length",
    "Evaluate.every": "eval_every eval_steps",
    "Optimizer.clip_norm": "clip",
    "Optimizer.learning_rate": "learning_rate lr",
    "Optimizer.name": "optim",
    "Optimizer.warmup_steps": "warmup",
    "T5Config.dropout_rate": "dropout",
    "T5Config.dtype": "precision",
    "Train.microbatches": "accumulation grad_steps gradient_accumulation_steps",
    "Train.steps": "epochs max_steps num_epochs num_train_epochs",
}
"""A setting -> what other programs call it."""

VALUES_ELSEWHERE = {
    "epochs": "epochs x rows / Data.batch_size",
    "optim": "'adamw' or 'adafactor'",
    "per_device_train_batch_size": "rows of a device x devices",
    "precision": "'float32' or 'bfloat16'",
}
"""The end of such a name -> the values here, where they are others."""

NAMES_OF_T5X = {"INITIAL_CHECKPOINT_PATH": "Train.init_from", "MODEL_DIR": "Train.output_dir"}
"""Macros of T5X's gin files -> the setting here, where the name itself does not tell."""

UNIT = {
    "Train.steps": "optimiser updates, not epochs",
    "Data.batch_size": "on all devices together",
}
"""What must be known of a setting that other programs count otherwise."""


def is_table(word: str) -> bool:
    """Whether a word names a file with rows."""
    return word.lower().endswith(TABLES)


def init_command(table: str) -> str:
    """How a task is made of a table."""
    stem = "".join(c if c.isalnum() else "_" for c in Path(table).stem)
    stem = stem if stem.isidentifier() else f"my_{stem}"
    given = shlex.quote(table)
    return f"dss init {stem} --from {given} --input COLUMN --label COLUMN"


def unknown_task(name: str, known: Collection[str], folders: Iterable[Path]) -> UsageError:
    """The error for a task's name that is none in the folders that were searched."""
    if is_table(name):
        return UsageError(
            f"{name} is a table, not the name of a task. Make a task of it: {init_command(name)}"
        )
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        folder = shlex.quote(str(path.parent))
        return UsageError(f"a task is given by its name: --task {path.stem} --task_dir {folder}")
    error = unknown_name("task", name, known)
    looked = ", ".join(map(str, folders))
    return UsageError(
        f"{error} Looked in: {looked} (--task_dir). A task of a table of yours is made by dss init."
    )


def unknown_command(words: Sequence[str], commands: Collection[str]) -> UsageError:
    """The error where the first word is no command."""
    if table := next((word for word in words if is_table(word)), None):
        return UsageError(f"a command comes first. To begin with {table}: {init_command(table)}")
    if not words[0].startswith("-"):
        return unknown_name("command", words[0], commands)
    if (command := next((word for word in words if word in commands), None)) is None:
        return UsageError(f"a command comes first: dss train {shlex.join(words)}, say. See dss -h.")
    words = [word for word in words if word != command]
    return UsageError(f"the command comes first: dss {command} {shlex.join(words)}")


def wrong_arguments(parser: ArgumentParser, message: str) -> UsageError:
    """What argparse finds wrong with a command's flags, with the first example of its help."""
    lines = (line.strip() for line in (parser.description or "").splitlines())
    example = next((line for line in lines if line.startswith(f"{parser.prog} ")), None)
    shown = f" For example: {example}" if example else ""
    return UsageError(f"{parser.prog}: {message}.{shown}\nAll flags: {parser.prog} --help")


def unknown_argument(parser: ArgumentParser, rest: Sequence[str], settings: bool) -> UsageError:
    """The error for a word that a command does not take, the first of the `rest`; `settings`: it
    takes those of gin.
    """
    word, value = rest[0], "".join(rest[1:2])
    name, equals, own = word.partition("=")
    value = own if equals else value if value and not value.startswith("--") else "VALUE"
    bare = name.lstrip("-").removeprefix("gin.").replace("-", "_")
    known = [o for action in parser._actions for o in action.option_strings]
    flag = f"--{bare}"
    if flag in known:
        return UsageError(f"unknown argument {word!r}. Did you mean {flag}?")
    if settings and (found := _settings(bare)):
        others = [text for end, text in VALUES_ELSEWHERE.items() if bare.endswith(end)]
        value = f"VALUE, {others[0]}" if others else shlex.quote(value)
        given = " or ".join(f"--gin.{one}={value}" for one in found)
        unit = "".join(f" ({one}: {UNIT[one]})" for one in found if one in UNIT)
        return UsageError(f"{name} is a setting: give {given}{unit}.")
    if is_table(word) and not word.startswith("-"):
        return UsageError(f"unknown argument {word!r}. To begin with it: {init_command(word)}")
    near = nearest(flag, known) if name.startswith("-") else None
    hint = f" Did you mean {near}?" if near else ""
    return UsageError(f"unknown argument {word!r}.{hint} See {parser.prog} --help.")


def _settings(name: str) -> list[str]:
    """The settings that a word may mean: its full name, the last part of one, or another's name."""
    if name in SETTINGS:
        return [name]
    elsewhere = [one for one, names in NAMES_ELSEWHERE.items() if name in names.split()]
    return elsewhere or [one for one in SETTINGS if one.partition(".")[2] == name]


def without_effect(name: str, place: str, settings: Collection[str]) -> UsageError:
    """The error for a macro that nothing uses: most likely a setting without its section."""
    fields_of = {s: s.partition(".")[2] for s in settings}
    bare = name.lower().replace("_", "")
    alike = {s for s in fields_of if s.lower().replace("_", "").replace(".", "") == bare}
    found = [s for s, own in fields_of.items() if own == name.lower() or s in alike]
    if not found:
        near = nearest(name, fields_of.values())
        found = [s for s, own in fields_of.items() if own == near]
    if name in NAMES_OF_T5X:
        found = [NAMES_OF_T5X[name]]
    hint = f" Did you mean {' or '.join(found)}?" if found else ""
    return UsageError(
        f"{name} = ... has no effect: it is no setting, and no value uses it as %{name}.{hint} "
        f"({place})"
    )


def unreadable(lines: Sequence[str], place: str, error: Exception) -> UsageError:
    """The error for text that gin's parser does not take; it says where quotes are missing."""
    reason = getattr(error, "msg", None) or str(error)
    found = re.fullmatch(r"\s*([\w.]+)\s*=\s*([^\s\"'()\[\]{}#]+)\s*(?:#.*)?", "".join(lines))
    if found is None:
        return UsageError(f"gin cannot read the configuration ({place}): {reason.splitlines()[0]}")
    name, value = found.groups()
    return UsageError(
        f"{name} = {value} is no value ({place}). Text needs quotes: {name} = {value!r}, and on a "
        f"""command line --gin.{name}='"{value}"'. Others: 300, 1e-3, True, None, (1, 2)."""
    )
