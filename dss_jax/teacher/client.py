"""One request over OpenAI's protocol, and what its failure means.

The key is read from the environment here and in `batch.py` only. It is in no message: server texts
that repeat it are blotted out.
"""

import asyncio
import functools
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from dss_jax import __version__
from dss_jax.core.errors import UsageError
from dss_jax.records.files import as_json
from dss_jax.records.records import Reply
from dss_jax.teacher.prices import HOSTED, tokens_of
from dss_jax.teacher.replies import Retryable, failure_of, reply_of

OWN_SERVER_KEY = "none"  # Sent to a server of the user's own where no key is set.

ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
"""Header -> the variable that it is taken from, where that is set."""

CONNECT_SECONDS = 10.0  # For one connection; a machine that is not there does not answer at all.

REASON_LENGTH = 300  # Characters of a server's message that are kept.


class Client:
    """Calling it sends one body, once (`asking.ServerTeacher`).

    Args:
      base_url: of the server, with its `/v1`.
      api_key_env: name of the variable that holds the key; errors are those of `key_from`.
      timeout: seconds for a whole request, also where a server sends byte by byte.
      connections: most requests at once.
    """

    def __init__(
        self,
        base_url: str = HOSTED,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        connections: int = 32,
    ) -> None:
        key = key_from(base_url, api_key_env)
        self._clean = functools.partial(clean, key=key)
        self._url, self._timeout, self._connections = urlsplit(base_url), timeout, connections
        self._headers = {"Content-Type": "application/json", "User-Agent": f"dss-jax/{__version__}"}
        if self._url.username is None:  # Else these are sent.
            self._headers["Authorization"] = f"Bearer {key or OWN_SERVER_KEY}"
        for header, variable in ACCOUNT.items():
            if value := os.environ.get(variable):
                self._headers[header] = value
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        """The connections; opened late, in the event loop that they belong to."""
        if self._session is None:
            # Not `trust_env`, which looks for a proxy in a thread, at each request.
            own = proxy_bypass(self._url.hostname or "")
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                proxy=None if own else getproxies().get(self._url.scheme),
            )
        return self._session

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def __call__(self, body: Mapping[str, Any]) -> Reply:
        """Sends a body.

        Raises:
          Retryable: no answer in time, a broken connection, an answer without a completion.
          Retryable, Exhausted, Rejected, Fatal: as of `failure_of`.
        """
        chat = "messages" in body
        path = f"{self._url.path.rstrip('/')}/{'chat/' if chat else ''}completions"
        url, sent = self._url._replace(path=path).geturl(), as_json(dict(body))
        try:
            async with asyncio.timeout(self._timeout):
                # Not through `openai`, which takes ten times the processor time for a request.
                async with self._opened().post(url, data=sent) as response:
                    content = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Retryable(self._clean(str(error)), unreachable=True) from None
        except TimeoutError:
            raise Retryable(f"no answer within {self._timeout:g} seconds") from None
        except aiohttp.ClientError as error:
            raise Retryable(self._clean(f"{type(error).__name__}: {error}")) from None
        if response.status < 300:
            return reply_of(content, chat, self._clean, tokens_of(body))
        text = content.decode(errors="replace") or response.reason or ""
        found = failure_of(response.status, text, self._clean, response.headers, body)
        if isinstance(found, Reply):
            return found
        raise found


def key_from(base_url: str, api_key_env: str) -> str:
    """The key out of the environment; "" for a server of the user's own that wants none.

    Raises:
      UsageError: a wrong URL; the variable is not set, and the server is not the user's own; the
        key can be none.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https"):
        raise UsageError(
            f"--base_url must begin with http:// or https://, not {base_url!r}; for example "
            "http://localhost:8000/v1."
        )
    key = os.environ.get(api_key_env, "").strip()
    # A server of the user's has a port of its own or is this machine.
    if not key and parts.port is None and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(
            f"{api_key_env} is not set. Put the key of {host_of(base_url)} into that variable, or "
            "name another with --api_key_env. Never give a key as a flag."
        )
    # Told here: the HTTP library's error would show the key.
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"{api_key_env} holds a line break or another character that no key has. It must be "
            "the key alone, on one line."
        )
    return key


def clean(text: str, key: str) -> str:
    """A server's text without the key, shortened."""
    if key:
        text = text.replace(key, "[key]")
    text = re.sub(r"\b(sk-|Bearer\s+)[\w.\-*]{6,}", "[key]", text)
    return text[:REASON_LENGTH]


def host_of(base_url: str) -> str:
    """Host and port of a server, without path, user or password."""
    parts = urlsplit(base_url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
