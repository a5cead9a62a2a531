"""The authors' release of the benchmarks, fetched: rows and PaLM's completions, in one zip file."""

import hashlib
import logging
import shutil
import stat
import time
import zipfile
from pathlib import Path

from dss_jax.core import locks
from dss_jax.core.errors import UsageError
from dss_jax.core.partial import whole_folder
from dss_jax.core.paths import NEW, cache_folder, check_name, check_new_folder, written
from dss_jax.core.road import RELEASE
from dss_jax.core.types import DistillationTask, Release, Tfds
from dss_jax.data.download import answer
from dss_jax.data.sources import completions_folder

log = logging.getLogger(__name__)

COMMIT = "ef944263c9ddfd40a9888557f3e7d17513fd1a7e"
ARCHIVE = f"{RELEASE}/raw/{COMMIT}/datasets.zip"

GIT_BLOB = "fb9d88a0b44c2daac1ec1639f0bdae993e7e5bcd"
"""Git's name of that file in that commit: SHA-1 of "blob SIZE", a zero byte, and its content."""

PIECE = 1 << 20
SAID_EVERY = 10.0
"""Seconds between lines of a download."""

MOST_BYTES = 8_000_000_000
"""Of one data set, unpacked."""


def fetch(task: DistillationTask, folder: Path, archive: str | None = None) -> list[Path]:
    """Fetches a task's part of the release into a data folder; each part appears whole or not at
    all. The archive is kept in the cache; a download that was stopped goes on.

    Args:
      archive: the same file from elsewhere, a path or an address; None: from the authors.

    Returns:
      The folders that were written.

    Raises:
      UsageError: the task is not of the release, its folder is there already, no network, or
        another file than the authors'.
    """
    parts = {completions_folder(s) for s in task.sources if isinstance(s, Release | Tfds)} - {""}
    if not parts:
        raise UsageError(f"task {task.name!r} is not of the authors' release: it has its own data.")
    for part in sorted(parts):
        check_new_folder(folder / part)
    file = _archive(archive)
    return [_unpack(file, part, folder / part) for part in sorted(parts)]


def _archive(given: str | None) -> Path:
    """The archive on this machine, its digest checked."""
    if given is not None and "://" not in given:
        file = Path(given).expanduser()
        if not file.is_file():
            raise UsageError(f"there is no file {file}. Give the authors' datasets.zip.")
        _check(file, given)
        return file
    url = given or ARCHIVE
    file = cache_folder() / "downloads" / f"{GIT_BLOB[:12]}-datasets.zip"
    with locks.held(file.with_suffix(".lock"), "{owner} is fetching it; waiting", wait=True):
        if not file.is_file():
            partial = file.with_name(f"{file.name}{NEW}")
            try:
                _download(url, partial)
            except UsageError as error:
                if getattr(error.__cause__, "code", None) != 416:  # Or all of it is there.
                    raise
            try:
                _check(partial, url)
            except UsageError:
                partial.unlink()
                raise
            partial.rename(file)
    return file


def _download(url: str, partial: Path) -> None:
    fix = (
        "Fetch it where there is a network, and give --archive FILE; or give the folder of the "
        "data with --data_dir."
    )
    start = partial.stat().st_size if partial.is_file() else 0
    with answer(url, f"the authors' release {url}", fix, start) as response:
        mode = "ab" if response.status == 206 else "wb"  # 200: from the beginning after all.
        left = int(response.headers.get("Content-Length") or 0)
        log.info("fetching %s: %.1f MB", url, left / 1e6)
        with written(partial), partial.open(mode) as out:
            said = time.monotonic()
            while piece := response.read(PIECE):
                out.write(piece)
                if time.monotonic() - said > SAID_EVERY:
                    said = time.monotonic()
                    log.info("  %.1f MB are there", out.tell() / 1e6)
            # Of a connection that was closed too soon, reading in pieces says nothing.
            if (missing := left - (out.tell() - (start if mode == "ab" else 0))) > 0:
                raise ConnectionError(f"{missing:,} bytes are missing; the same command goes on")


def _check(file: Path, where: str) -> None:
    """Raises UsageError where a file is not the authors'."""
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with file.open("rb") as content:
        while piece := content.read(PIECE):
            digest.update(piece)
    if digest.hexdigest() != GIT_BLOB:
        raise UsageError(
            f"{where} is not the authors' file of commit {COMMIT[:7]}: its git digest is "
            f"{digest.hexdigest()}, not {GIT_BLOB}. Nothing was unpacked."
        )


def _unpack(file: Path, part: str, target: Path) -> Path:
    """Writes what lies in the folder `part` of the archive, wherever that is in it."""
    try:
        with zipfile.ZipFile(file) as archive, whole_folder(target) as folder:
            wanted = {}
            for info in archive.infolist():
                head, found, name = f"/{info.filename}".partition(f"/{part}/")
                hidden = "__MACOSX" in head or name.rpartition("/")[2].startswith(".")
                if not found or info.is_dir() or hidden:
                    continue
                check_name(name, file)
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise UsageError(f"{file} has a link, {info.filename}, which is not unpacked.")
                wanted[name] = info
            size = sum(info.file_size for info in wanted.values())
            if not wanted or size > MOST_BYTES:
                raise UsageError(f"{file} holds {size:,} bytes of {part}: it is no such release.")
            for name, info in wanted.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as content, (folder / name).open("wb") as out:
                    shutil.copyfileobj(content, out)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{file} cannot be read as a zip file: {error}.") from error
    log.info("%s: %d files, %.1f MB", target, len(wanted), size / 1e6)
    return target
