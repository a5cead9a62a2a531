"""A folder that knows its content: CRC-32 and size of each of its files. Standard library only.

Disks, network file systems and interrupted copies change or lose bytes, and readers of arrays do
not notice: a restored array is then another one. CRC-32 is against accidents, not people, and
costs little beside writing.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK = 2**20
"""Bytes that are read at once."""

FILE = "sums.json"
"""In the folder: name below it -> [bytes, CRC-32]."""


def write_sums(folder: Path, leave_out: Iterable[str] = ()) -> None:
    """Writes the sums of all that the folder, which has not got its name yet, holds now, but for
    files that may still change.
    """
    files = _files(folder, {FILE, *leave_out})
    sums = {name: [path.stat().st_size, _crc32(path)] for name, path in files}
    # Not forced to the disk, which takes longer than all else here: nor are Orbax's own small files
    # and the new name. What of them a power cut takes away is known by the sums, or by their lack.
    (folder / FILE).write_text(json.dumps(sums, indent=1) + "\n")


def damage(folder: Path, part: str = "") -> str | None:
    """The first of `faults`; None: there is none."""
    return next(faults(folder, part), None)


def faults(folder: Path, part: str = "") -> Iterator[str]:
    """What is wrong with a folder that has sums, with the names of files that are missing or others
    than their sums say. `part`: of files whose names begin so.
    """
    if not (folder / FILE).is_file():
        return
    try:
        read = json.loads((folder / FILE).read_text())
        sums = {name: (int(size), int(crc)) for name, (size, crc) in read.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        yield f"{FILE} cannot be read"
        return
    there = dict(_files(folder, set()))
    for name, (size, crc) in sums.items():
        if not name.startswith(part):
            continue
        if name not in there:
            yield f"{name} is missing"
        elif (found := there[name].stat().st_size) != size:
            yield f"{name} has {found:,} bytes, not {size:,}"
        elif _crc32(there[name]) != crc:
            yield f"{name} is not what was written (CRC-32)"


def _files(folder: Path, leave_out: set[str]) -> list[tuple[str, Path]]:
    found = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    below = sorted((path.relative_to(folder).as_posix(), path) for path in found)
    return [(name, path) for name, path in below if name not in leave_out]


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
