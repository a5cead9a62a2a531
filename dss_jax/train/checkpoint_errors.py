"""What is said of checkpoints that cannot be written or read. Seldom, so it is imported then."""

from collections.abc import Sequence
from pathlib import Path

from dss_jax.core import storage, sums
from dss_jax.core.disk import free, trouble
from dss_jax.core.errors import UsageError


def unwritten(folder: Path, size: int, whole: Sequence[int], error: Exception) -> UsageError:
    """A checkpoint of so many bytes."""
    room = "" if storage.is_remote(folder) else f"{free(folder):,.1f} MB free, "
    return UsageError(
        f"a checkpoint could not be written to {folder}: {_cause(error)}. There: "
        f"{room}about {size / 1e6:,.1f} MB needed; whole: {listed(whole)}. "
        "Make room, or the folder writable, and give the same command again to go on."
    )


def unreadable(path: Path | str, error: Exception) -> UsageError:
    """One without sums, or of others; or a folder of them, of which Orbax reads the scores."""
    if said := trouble(error, path):
        return UsageError(said)
    steps = [f for f in Path(path).glob("*") if f.name.isdigit()] if Path(path).is_dir() else []
    wrong = [f"{step.name} ({said})" for step in steps if (said := sums.damage(step))]
    if wrong:
        return UsageError(
            f"the checkpoints in {path} cannot be looked through, for some are damaged: "
            f"{', '.join(wrong)}. To set these aside: dss doctor {Path(path).parent} --repair."
        )
    return UsageError(
        f"the checkpoint {path} cannot be read: {_cause(error)}. A file of it may have been "
        "cut short: copy it again, or give another checkpoint."
    )


def damaged(checkpoint: Path, wrong: str, others: Sequence[int]) -> UsageError:
    """One that is asked for, in a folder where `others` are whole."""
    return UsageError(
        f"checkpoint {checkpoint} is damaged: {wrong}. Whole: {listed(others)}. "
        "Copy it again from where it came from, or name another one with --checkpoint. To "
        "train on from another one, move this folder away and give `dss train` again."
    )


def listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def _cause(error: BaseException) -> str:
    """Of all that was raised, the first line of the first: Orbax's own texts are long."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:200]}"
