"""Folders that appear whole or not at all: written beside their place, and renamed. What a kill
leaves there, the next who writes to that place clears away. Standard library only.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dss_jax.core.machine import here, is_gone
from dss_jax.core.paths import check_new_folder, make_folder, written

IDLE = 24 * 3600
"""Seconds without a change after which nobody writes there any more, of whatever machine."""


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A folder to write what shall be `path` into, removed at the end if it is there still; its
    name says whose it is. Others of the same place are removed if their process is surely gone,
    or they are idle.
    """
    make_folder(path.parent)
    own = f".partial-{path.name}"
    name = re.compile(rf"{re.escape(own)}-(.+)-(\d{{1,9}})-[0-9a-f]{{8}}(?:-old)?")
    for other in path.parent.iterdir():
        match = name.fullmatch(other.name)
        if match and (is_gone(match[1], int(match[2])) or _is_idle(other)):
            shutil.rmtree(other, ignore_errors=True)
    folder = path.with_name(f"{own}-{here()}-{os.getpid()}-{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_idle(folder: Path) -> bool:
    with suppress(OSError):  # It may become whole meanwhile.
        latest = max(file.lstat().st_mtime for file in (folder, *folder.rglob("*")))
        return time.time() - latest > IDLE
    return False


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes the new folder `path`, and is removed after an error.
    UsageError: see `written`.
    """
    check_new_folder(path)
    with written(path), beside(path) as partial:
        yield partial
        os.replace(partial, path)
