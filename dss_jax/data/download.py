"""What is fetched over https:// by its address. Standard library only."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib import request

from dss_jax.core.errors import UsageError

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
