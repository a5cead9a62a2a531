"""Local copies of folders in buckets, with a note of which versions they are of. Standard library
only: fsspec's file systems are given.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from dss_jax.core import paths
from dss_jax.core.partial import beside

log = logging.getLogger(__name__)

INDEX = ".copied.json"
"""In a local copy: file -> size and tag of the version that it was copied from."""

_TAGS = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified")


def update_copy(files: Any, root: str, name: str, folder: Path, skip: tuple[str, ...]) -> Path:
    """Fetches what has changed in a bucket, and removes what is no longer there.

    Args:
      files, root: fsspec's file system, and the remote folder in it.
      name: of the remote folder, for messages.
      folder: the copy.
      skip: endings of files that are not wanted.

    Raises:
      FileNotFoundError: there is nothing below it.
      UsageError: an object's name would lead out of the copy.
    """
    files.invalidate_cache()
    found = {}
    for entry, info in files.find(root, detail=True).items():
        if info["type"] == "file" and not entry.endswith(("/", *skip)):
            tag = next((str(info[t]) for t in _TAGS if info.get(t)), "")
            found[entry.removeprefix(f"{root}/")] = [str(info["size"]), tag]
    # A copy that was put back into the bucket brings its own.
    found.pop(INDEX, None)
    if not found:
        raise FileNotFoundError("it is empty")
    for object_name in found:
        paths.check_name(object_name, name)
        paths.below(folder, object_name)
    try:
        have: dict[str, list[str]] = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError):
        have = {}
    changed = [n for n, v in found.items() if have.get(n) != v or not (folder / n).is_file()]
    if changed:
        size = sum(int(found[n][0]) for n in changed)
        log.info(f"fetching {len(changed)} files, {size / 1e6:,.1f} MB, from {name}")
        _fetch(files, root, folder, changed)
    for gone in have.keys() - found.keys():
        paths.below(folder, gone).unlink(missing_ok=True)
    (folder / INDEX).write_text(json.dumps(found))
    return folder


def _fetch(files: Any, root: str, folder: Path, names: list[str]) -> None:
    with beside(folder / "files") as partial:
        fetched = [str(Path(partial, str(i))) for i in range(len(names))]
        # Many at once; a file appears in its place when it is whole.
        files.get([f"{root}/{n}" for n in names], fetched)
        for name, file in zip(names, fetched, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, folder / name)
