"""The output folder of a run: what is in it, and whether it may go on.

config.gin            the resolved configuration
t5_config.json        the model's shape, so that the checkpoints can be read without gin
spiece.model          the vocabulary
student.json          how the student is asked: prefixes, labels, lengths; a few test rows
data.json             what it is trained on: digests of its rows; where its files were
checkpoints/STEP/     params, optimizer
metrics.jsonl         a line a logged step
bad_steps.jsonl       a line a batch that was not trained on, for its loss was not finite
loss_spikes.jsonl     a line a loss far above those before
diverged.json         after so many in a row that the run has ended, with diverged/: `dss replay`
startup.jsonl         a line a start: where the time went before the first step
tensorboard/          the same numbers; a trace of `--profile`
predictions/          SPLIT-STEP.jsonl; SPLIT-best.jsonl of the best, when the run is done
results.json          scores of the best checkpoint, when the run is done
curves.png
train.log             what a run of `dss sweep` has printed
run.lock              who trains or scores there at the moment
"""

import difflib
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from dss_jax.core import config, locks, processes, registry, storage, strict_json
from dss_jax.core.checks import rule_of
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import NEW, write_whole
from dss_jax.interop.model_files import CHECKPOINTS as CHECKPOINTS

CONFIG, RESULTS = "config.gin", "results.json"
METRICS, PREDICTIONS, CURVES = "metrics.jsonl", "predictions", "curves.png"
STARTUP, TENSORBOARD = "startup.jsonl", "tensorboard"
STORE_LINE = "# token store: "
LOCK = "run.lock"
OTHER = "-other-"
"""In the name of a file of predictions: of other data or settings than the run's."""
BEFORE = {"train.log", LOCK, "sweep.lock"}
"""What may be in a run's folder before the run is; the last is a lock of older versions."""

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Within it no other process writes into the folder of a run. With several processes, all must
    call it, and the first has the lock; on remote folders there is none.

    Raises:
      locks.Taken: another process has it.
    """
    taken = (
        f"{folder} is in use: {{owner}} trains or scores there. Let it finish, stop it, or give "
        "another --output_dir."
    )
    with ExitStack() as stack:

        def take() -> None:
            stack.enter_context(locks.held(storage.place(folder) / LOCK, taken))

        processes.broadcast_from_first(take)
        yield


def alone(train: F) -> F:
    """Makes a function of a run hold the lock of its folder: see `locked`."""

    @functools.wraps(train)
    def train_alone(run: config.Run, *args: Any, **kwargs: Any) -> Any:
        with locked(run.train.output_dir) if run.train.output_dir else nullcontext():
            return train(run, *args, **kwargs)

    return train_alone  # type: ignore[return-value]


def fixed_lines(text: str) -> list[str]:
    """The bindings that may not change while a run goes on, as this version writes them."""
    lines = []
    for line in text.splitlines():
        if line.startswith(STORE_LINE):
            lines.append(line)
        elif line and line[0] != "#":
            name, value = config.binding(line)
            if name not in config.SETTINGS or not rule_of(config.SETTINGS[name]).free:
                lines.append(f"{name} = {value}")
    return lines


def difference(saved: str, text: str, folder: Path) -> str:
    """What differs between a saved configuration and that of this run; "" where nothing does. The
    data are compared where both say which they are.
    """
    before, now = fixed_lines(saved), fixed_lines(text)
    if not (STORE_LINE in saved and STORE_LINE in text):
        before, now = ([x for x in one if not x.startswith(STORE_LINE)] for one in (before, now))
    # Settings that the saved run's version did not have yet do at their defaults what that did.
    known = {line.split(" = ")[0] for line in before}
    defaults = {f"{name} = {field.default!r}" for name, field in config.SETTINGS.items()}
    now = [line for line in now if line.split(" = ")[0] in known or line not in defaults]
    lines = difflib.unified_diff(before, now, str(folder), "this run", n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith("@@"))


def saved_text(folder: Path) -> str:
    """The configuration in a folder; "" where there is none."""
    with storage.explained(folder):
        return (folder / CONFIG).read_text() if (folder / CONFIG).exists() else ""


def begun(folder: Path) -> bool:
    """Whether the run in a folder was ever opened; a sweep may only have planned it."""
    return STORE_LINE in saved_text(folder)


def another(folder: Path, diff: str) -> UsageError:
    """The error where the run in a folder differs so from the one that was asked for."""
    return UsageError(
        f"{folder} holds a run with another configuration:\n{diff}\n"
        "Give another --output_dir, or the same settings to go on with that run."
    )


def open_run_folder(run: config.Run, store_digest: str | None) -> Path:
    """Makes the output folder, or checks that the one that is there is of the same run, with the
    same data. None: another process shall start the run, with the `config.gin` written here as its
    `--gin_file`; a run that was only handed over so may be written over.

    Raises:
      UsageError: no folder was given, or it holds a run with another configuration (the message
        shows the difference) or files of something else.
    """
    if run.train.output_dir is None:
        raise UsageError("no output folder: give --output_dir DIR.")
    folder = check_output_dir(run.train.output_dir)
    saved = saved_text(folder)
    with storage.explained(folder):
        new = (
            saved
            or not folder.exists()
            or {file.name for file in folder.iterdir() if not file.name.endswith(NEW)} <= BEFORE
        )
    if not new:
        raise UsageError(
            f"{folder} is not empty and holds no {CONFIG}, so it is not a run's folder. "
            "Give another --output_dir."
        )
    own = config.to_gin(run)
    text = own if store_digest is None else f"{STORE_LINE}{store_digest}\n{own}"
    opened = STORE_LINE in saved
    compared = has_trained(folder) if opened else saved and store_digest is not None
    if compared and (diff := difference(saved, text, folder)):
        raise another(folder, diff)
    if store_digest is None:
        text = "\n".join([x for x in saved.splitlines() if x.startswith(STORE_LINE)] + [own])
    # What a finished run was trained with stays as it is.
    with storage.explained(folder):
        if text != saved and not (folder / RESULTS).exists():
            write_whole(folder / CONFIG, text)
    registry.remember(run.task.name, text)
    return folder


def has_trained(folder: Path) -> bool:
    """Whether the run in a folder came as far as training. One that was refused before, for a mesh
    that does not fit, say, may have its settings mended.
    """
    with storage.explained(folder):
        return bool({file.name for file in folder.iterdir()} & {CHECKPOINTS, METRICS, RESULTS})


def check_output_dir(path: str) -> Path:
    """The place of an output folder; raises UsageError where Orbax cannot write checkpoints there,
    or an extra is missing.
    """
    if storage.scheme_of(path) == "s3":
        raise UsageError(
            f"--output_dir {path}: Orbax {metadata.version('orbax-checkpoint')} writes checkpoints "
            "to local folders and gs:// only. Give one of these; `dss convert` writes the student "
            "to s3://."
        )
    place = storage.place(path)
    if isinstance(place, Path):
        there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
        if not there.is_dir():
            raise UsageError(f"--output_dir {path}: {there} is a file. Give a folder.")
    return place


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Writes `results.json`, which says that the run is done."""
    write_whole(folder / RESULTS, strict_json.dumps(results, indent=2) + "\n")


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run; None while it is not finished."""
    file = folder / RESULTS
    fix = "Take a whole copy, or remove it and give the run's dss train again: it scores anew."
    return strict_json.read(file, fix) if file.exists() else None
