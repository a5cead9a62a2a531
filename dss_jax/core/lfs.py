"""Git LFS: in a clone made without it, a few lines of text stand in the place of a large file."""

import contextlib
from pathlib import Path

from dss_jax.core.errors import UsageError

MARK = "version https://git-lfs.github.com/spec/"
"""How such a pointer begins."""


def refuse_pointer(file: Path) -> None:
    """Raises UsageError where a file is only the pointer to one."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        if opened.read(len(MARK)) == MARK.encode():
            raise pointer(file)


def pointer(file: Path) -> UsageError:
    """What is said of one."""
    return UsageError(
        f"{file} is a Git LFS pointer, not the file itself: the repository was cloned without Git "
        f"LFS. Install it and fetch the files: cd {file.parent} && git lfs install && git lfs pull"
    )
