"""A folder that knows its content: CRC-32 and size of each of its files. Standard library only.

Disks, network file systems and interrupted copies change or lose bytes, and readers of arrays do
not notice: a restored array is then another one. CRC-32 is against accidents, not people, and
costs little beside writing.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dss_jax.core.paths import write_whole

BLOCK, THREADS = 2**18, 4
"""Bytes that are read at once, so that they are still in the processor's cache; files at once."""

FILE = "sums.json"
"""In the folder: name below it -> [bytes, CRC-32]."""


def write_sums(folder: Path, leave_out: Iterable[str] = ()) -> None:
    """Writes the sums of all that the folder holds now, but for files that may still change."""
    found = _files(folder, {FILE, *leave_out})
    both = zip(found, _crcs(found), strict=True)
    sums = {name: [path.stat().st_size, crc] for (name, path), crc in both}
    write_whole(folder / FILE, json.dumps(sums, indent=1) + "\n")


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
    there, same = dict(_files(folder, set())), list[str]()
    for name, (size, _) in sums.items():
        if not name.startswith(part):
            continue
        if name not in there:
            yield f"{name} is missing"
        elif (found := there[name].stat().st_size) != size:
            yield f"{name} has {found:,} bytes, not {size:,}"
        else:
            same.append(name)
    crcs = _crcs([(name, there[name]) for name in same])
    for name in (n for n, crc in zip(same, crcs, strict=True) if crc != sums[n][1]):
        yield f"{name} is not what was written (CRC-32)"


def _files(folder: Path, leave_out: set[str]) -> list[tuple[str, Path]]:
    found = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
    below = sorted((path.relative_to(folder).as_posix(), path) for path in found)
    return [(name, path) for name, path in below if name not in leave_out]


def _crcs(files: Sequence[tuple[str, Path]]) -> list[int]:
    with ThreadPoolExecutor(THREADS, "sums") as pool:
        return [*pool.map(_crc32, [path for _, path in files])]


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
