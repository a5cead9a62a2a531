"""A folder that knows its content: CRC-32 and size of each of its files. Standard library only.

Disks, network file systems and interrupted copies change or lose bytes, and readers of arrays do
not notice: a restored array is then another one. CRC-32 is against accidents, not people, and
costs little beside writing.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 2**18
"""Bytes that are read at once, all into one buffer."""

FILE = "sums.json"
"""In the folder: name below it -> [bytes, CRC-32]."""


def write_sums(folder: Path, leave_out: Iterable[str] = ()) -> None:
    """Writes the sums of all that the folder, which has not got its name yet, holds now, but for
    files that may still change.
    """
    files = _files(folder, {FILE, *leave_out})
    crcs = _crc32s(path for _, path in files)
    sums = {name: [p.stat().st_size, crc] for (name, p), crc in zip(files, crcs, strict=True)}
    # Not forced to the disk, which takes longest here: nor are Orbax's own small files and the new
    # name. What a power cut takes away is known by the sums, or by their lack.
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
    there, whole = dict(_files(folder, set())), list[str]()
    for name in (name for name in sums if name.startswith(part)):
        if name not in there:
            yield f"{name} is missing"
        elif (found := there[name].stat().st_size) != (size := sums[name][0]):
            yield f"{name} has {found:,} bytes, not {size:,}"
        else:
            whole.append(name)
    for name, crc in zip(whole, _crc32s(there[name] for name in whole), strict=True):
        if crc != sums[name][1]:
            yield f"{name} is not what was written (CRC-32)"


def _files(folder: Path, leave_out: set[str]) -> list[tuple[str, Path]]:
    found = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    below = sorted((path.relative_to(folder).as_posix(), path) for path in found)
    return [(name, path) for name, path in below if name not in leave_out]


def _crc32s(paths: Iterable[Path]) -> list[int]:
    from dss_jax.core.machine import processors

    with ThreadPoolExecutor(processors()) as pool:  # zlib works without Python's lock.
        return [*pool.map(_crc32, paths)]


def _crc32(path: Path) -> int:
    crc, buffer = 0, memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
    return crc
