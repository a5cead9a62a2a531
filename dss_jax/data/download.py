"""What is fetched over https:// by its address. Standard library only, but for buckets."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib import request

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import GCS
from dss_jax.core.paths import cache_folder, write_whole

SECONDS = 5.0
"""That a server may say nothing."""


@contextmanager
def answer(url: str, what: str, fix: str, start: int = 0) -> Iterator[Any]:
    """The answer of a server, from byte `start` on where it can (status 206). Raises UsageError: it
    names `what` was asked for, why it does not come, and the `fix`; its cause is urllib's error.
    """
    asked = request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with request.urlopen(asked, timeout=SECONDS) as response:
            yield response
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"cannot fetch {what} ({reason}). {fix}") from error


def web_address(name: str) -> str:
    """An address as `https://`, by which public buckets need no extra; a path as it is."""
    return name.replace("gs://", GCS, 1)


def cached(url: str) -> Path:
    """Where a vocabulary of an address is, once it was fetched."""
    stem = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache_folder() / "vocabularies" / f"{stem}-{Path(url).name}"


def fetched(name: str) -> Path:
    """The vocabulary of an address, in the cache. UsageError: it cannot be had."""
    if name.startswith("s3://"):
        return storage.local_file(name)
    url = web_address(name)
    file = cached(url)
    if file.is_file():
        return file
    try:
        _fetch(url, name, file)
    except UsageError as error:
        # Over https:// only public buckets can be read. gcsfs would try for a minute to reach
        # one that did not answer.
        denied = getattr(error.__cause__, "code", None) in (401, 403, 404)
        if not (denied and name.startswith("gs://") and storage.has_extra(name)):
            raise
        return storage.local_file(name)
    return file


def _fetch(url: str, name: str, file: Path) -> None:
    fix = "Give a local SentencePiece .model file with --vocabulary FILE, or set DSS_VOCABULARY."
    with answer(url, f"the vocabulary {name}", fix) as response:
        write_whole(file, response.read())
