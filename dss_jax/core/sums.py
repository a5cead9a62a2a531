"""A folder that knows its content: CRC-32 and size of each of its files. Standard library only.

Disks, network file systems and interrupted copies change or lose bytes, and readers of arrays do
not notice: a restored array is then another one. CRC-32 is against accidents, not people, and
costs little beside writing.
"""

import json
import os
import zlib
from collections.abc import Iterable, Sequence
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
    """What is wrong with a folder, with the name of the first file that is missing or another than
    its sum says; None: nothing, or the folder has no sums. `part`: of files whose names begin so.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        sums = {name: (int(size), int(crc)) for name, (size, crc) in _read(folder).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{FILE} cannot be read"
    there, sums = dict(_files(folder, set())), {n: s for n, s in sums.items() if n.startswith(part)}
    for name, (size, _) in sums.items():
        if name not in there:
            return f"{name} is missing"
        if (bytes_now := there[name].stat().st_size) != size:
            return f"{name} has {bytes_now:,} bytes, not {size:,}"
    found = _crcs([(name, there[name]) for name in sums])
    other = (name for (name, (_, crc)), now in zip(sums.items(), found, strict=True) if now != crc)
    return next((f"{name} is not what was written (CRC-32)" for name in other), None)


def _read(folder: Path) -> dict:
    return json.loads((folder / FILE).read_text())


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
