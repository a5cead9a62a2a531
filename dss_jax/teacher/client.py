"""One request over OpenAI's protocol, and what its failure means.

The key is read from the environment here and in `batch.py` only. It is in no message: server texts
that repeat it are blotted out.
"""

import asyncio
import datetime
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from dss_jax import __version__
from dss_jax.core.errors import UsageError
from dss_jax.records.files import as_json
from dss_jax.records.records import Reply
from dss_jax.teacher.limits import LONGEST_RETRY_AFTER, retry_after
from dss_jax.teacher.prices import HOSTED, tokens_of
from dss_jax.teacher.replies import Retryable, error_of, reply_of, said_in

OWN_SERVER_KEY = "none"
"""Sent to a server of the user's own where no key is set: the client wants one."""

ACCOUNT = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
"""Header -> the variable that it is taken from, where that is set."""

REASON_LENGTH = 300
"""Characters of a server's message that are kept."""

INSTEAD = {
    "stop": "Add --omit stop; answers that run on are cut all the same.",
    "temperature": "Add --omit temperature for the model's own.",
    "max_tokens": "Add --max_tokens_field max_completion_tokens, or --omit max_tokens.",
    "max_completion_tokens": "Leave out --max_tokens_field.",
    "top_p": "Leave out --top_p.",
    "top_k": "Leave out --top_k.",
    "seed": "Leave out --seed.",
    "response_format": "Leave out --structured.",
}
"""Field of a request that a server may not have -> what to do."""

_NOT_SUPPORTED = re.compile(
    r"support|unrecogni[sz]ed|unknown|unexpected|not (allowed|permitted)|no longer|deprecated", re.I
)
_TOO_LARGE = re.compile(r"too (large|long|many)|at most|maximum", re.I)

_DAILY = re.compile(r"per[ _-]?day|\bdaily\b|\b[RT]PD\b", re.I)
"""Of a limit that is not for minutes."""

_MODERATED = re.compile(
    r"content[ _]?(filter|policy|management|exists risk)|moderation|\bflagged (for|as|by)\b"
    r"|safety (system|filter|reason|check|polic)"
    r"|data_inspection_failed|inappropriate content|usage (policy|policies|guidelines)"
    r"|responsible ?ai|prohibited[ _]content",
    re.I,
)
"""Of a row whose text a server's filter has taken exception to."""

_OF_THE_ACCOUNT = re.compile(r"\b(account|organi[sz]ation|api key|project)\b", re.I)


class Exhausted(Exception):  # noqa: N818
    """A quota is used up for hours: nothing can be asked before it is filled again."""


class Rejected(Exception):  # noqa: N818
    """The server will not answer this request, whenever it is sent."""


class Fatal(Exception):  # noqa: N818
    """No request can work: a wrong key, no such model, no money left, a field it does not have."""


class Client:
    """Calling it sends one body, once (`asking.ServerTeacher`).

    Args:
      base_url: of the server, with its `/v1`.
      api_key_env: name of the variable that holds the key.
      timeout: seconds for a whole request, also where a server sends byte by byte.
      connections: most requests at once.

    Raises:
      UsageError: the variable is not set, and the server is not on this machine or network.
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
            host, scheme = self._url.hostname or "", self._url.scheme
            # Not `trust_env`, which looks for a proxy in a thread, at each request.
            proxy = None if proxy_bypass(host) else getproxies().get(scheme)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None),
                proxy=proxy,
            )
        return self._session

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def __call__(self, body: Mapping[str, Any]) -> Reply:
        """Sends a body.

        Raises:
          Retryable: 408, 409, 429, 5xx, no answer in time, a broken connection, an answer that is
            not JSON or holds no completion.
          Exhausted: 429 for a day's quota.
          Rejected: 400, 413, 422: this request only.
          Fatal: 401, 402, 403, 404, no money left, or a 400 for what is the same in all requests.
        """
        chat = "messages" in body
        path = f"{self._url.path.rstrip('/')}/{'chat/' if chat else ''}completions"
        url, sent = self._url._replace(path=path).geturl(), as_json(dict(body))
        try:
            async with asyncio.timeout(self._timeout):
                # Not through `openai`, which takes ten times the processor time for a request.
                async with self._opened().post(url, data=sent) as response:
                    content = await response.read()
        except TimeoutError:
            raise Retryable(f"no answer within {self._timeout:g} seconds") from None
        except aiohttp.ClientError as error:
            raise Retryable(self._clean(f"{type(error).__name__}: {error}")) from None
        if response.status < 300:
            return reply_of(content, chat, self._clean, tokens_of(body))
        text = content.decode(errors="replace") or response.reason or ""
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = text
        if reply := refused(response.status, answer, self._clean):
            return reply
        raise self._failure(response, text, answer, body)

    def _failure(
        self, response: aiohttp.ClientResponse, text: str, answer: Any, body: Mapping[str, Any]
    ) -> Exception:
        status, said, message = response.status, error_of(answer), said_in(answer, text)
        reason = self._clean(f"{status}: {message}")
        # Gemini's answer to a wrong key is a 400.
        wrong_key = status in (400, 422) and "api key" in message.lower()
        no_money = (said.get("code") or said.get("type")) == "insufficient_quota"
        if status in (401, 402, 403, 404) or wrong_key or no_money:
            return Fatal(reason)
        if status in (400, 422) and (field := refused_field(message, said.get("param"), body)):
            instead = INSTEAD.get(field, f"Take {field!r} out of --extra_body.")
            return Fatal(f"{reason.rstrip('.')}. {instead}")
        if status in (408, 409, 429) or status >= 500:
            wait = retry_after(response.headers, body=text)
            if status == 429 and (_DAILY.search(text) or (wait or 0) > LONGEST_RETRY_AFTER):
                return Exhausted(f"{reason.rstrip('.')}. {when_to_go_on(wait or 0)}")
            return Retryable(reason, wait, overload=status in (429, 503))
        return Rejected(reason)


def key_from(base_url: str, api_key_env: str) -> str:
    """The key out of the environment; "" for a server of the user's own that wants none.

    Raises:
      UsageError: a wrong URL; the variable is not set, and the server is not the user's own; the
        key can be none.
    """
    if urlsplit(base_url).scheme not in ("http", "https"):
        raise UsageError(
            f"--base_url must begin with http:// or https://, not {base_url!r}; for example "
            "http://localhost:8000/v1."
        )
    key = os.environ.get(api_key_env, "").strip()
    if not key and not is_own_server(base_url):
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


def refused(status: int, body: object, cleaned: Callable[[str], str]) -> Reply | None:
    """The reply of a server whose filter refused the text of one row; None for another error."""
    said = error_of(body)
    message = said_in(body, str(body or ""))
    kinds = (said.get(name) for name in ("code", "type", "status", "innererror", "metadata"))
    words = f"{message} {' '.join(str(kind) for kind in kinds if kind)}"
    if status not in (400, 403, 422, 451) or not _MODERATED.search(words):
        return None
    if status == 403 and _OF_THE_ACCOUNT.search(message):
        return None
    reason = cleaned(f"{status}: {message}")
    return Reply(text="", finish_reason="content_filter", refusal=reason)


def when_to_go_on(wait: float) -> str:
    """When a quota is filled again, for people. A wait of minutes is that of a shorter limit."""
    known = wait > LONGEST_RETRY_AFTER
    then = datetime.datetime.now(datetime.UTC)
    then += datetime.timedelta(seconds=wait) if known else datetime.timedelta(days=1)
    if known:
        return f"Go on after {then:%Y-%m-%d %H:%M} UTC"
    return f"Go on after {then:%Y-%m-%d} 00:00 UTC, or when the day ends where the server is"


def host_of(base_url: str) -> str:
    """Host and port of a server, without path, user or password."""
    parts = urlsplit(base_url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def is_own_server(base_url: str) -> bool:
    """Whether a server may be asked without a key: it has a port of its own or is this machine."""
    parts = urlsplit(base_url)
    return parts.port is not None or parts.hostname in ("localhost", "127.0.0.1", "::1")


def refused_field(message: str, param: Any, body: Mapping[str, Any]) -> str | None:
    """The field of a request that its server or model does not have; None where it is not that.

    Args:
      message: the server's.
      param: the field that the server names beside it, as OpenAI's does.
      body: of the request.
    """
    fields = set(body) - {"model", "messages", "prompt"}
    if not _NOT_SUPPORTED.search(message) or _TOO_LARGE.search(message):
        return None
    if param in fields:
        return str(param)
    # In quotes or after a colon: a message about one row may have "stop" among its words.
    return next((f for f in fields if re.search(rf"['\"`]{f}['\"`]|: {f}\b", message)), None)
