"""What a full, read-only or vanished disk says, for people. Standard library only."""

import errno
import os
import re
import shutil
from pathlib import Path

from dss_jax.core.errors import UsageError

_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
"""A file is in the place of a folder, or the other way round."""

_CODES = {
    *_PLACE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
}


def reason(error: BaseException) -> str | None:
    """What an error says of the disk or the folder; None: it is about something else."""
    code = error.errno if isinstance(error, OSError) else None
    if rust := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        code = int(rust[1])
    # NumPy has no number: "800 requested and 112 written".
    if re.search(r"\d+ requested and \d+ written", str(error)):
        code = errno.ENOSPC
    return os.strerror(code) if code in _CODES else None


def trouble(error: BaseException, path: Path | str | None, needed: int | None = None) -> str | None:
    """One line for an error at writing a file or folder (None: that which the error names), with
    the bytes that are needed where known; None: it is about something else.
    """
    if (said := reason(error)) is None:
        return None
    # Of a copy or a renaming the second is written.
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    at = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else None
    where = at or Path() if path is None else Path(path)
    if at is not None and not at.absolute().is_relative_to(where.absolute().parent):
        return None  # Something else could not be read.
    if isinstance(error, OSError) and error.errno in _PLACE:
        return (
            f"{where} could not be written: {said.lower()}. Give another path, or remove that file."
        )
    size = "" if needed is None else f", about {needed / 1e6:,.1f} MB needed"
    return (
        f"{'a file' if path is None and at is None else where} could not be written: {said}. "
        f"There: {free(where):,.1f} MB free{size}. What was whole is as it was. Make room, or the "
        "folder writable, and give the same command again."
    )


def unmade(folder: Path, error: OSError) -> Exception:
    """The error itself where `trouble` makes a line of it; else a UsageError, as below /proc."""
    said = f"the folder {folder} cannot be made: {error.strerror}. Give another path."
    return error if reason(error) else UsageError(said)


def free(folder: Path) -> float:
    """MB on the disk of a folder that may not be there."""
    there = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())
    return shutil.disk_usage(there).free / 1e6
