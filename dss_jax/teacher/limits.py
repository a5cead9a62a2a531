"""How fast requests may go: at most so many at once, so many a minute, and slower when told.

Concurrency follows additive increase, multiplicative decrease (as TCP does; Chiu and Jain, 1989):
each answer adds a little, each "too many requests" takes a part away. `Retry-After` holds everybody
back.
"""

import asyncio
import datetime
import email.utils
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

LONGEST_WAIT = 60.0  # Seconds between two attempts at one request, at most.
DECREASE = 0.7  # What is left of the requests at once after the server did not cope.
# Seconds: requests sent before the last decrease say nothing about the new rate.
DECREASE_AT_MOST_EVERY = 1.0
# Seconds; a server's longer wish is cut to this, so that a wrong header cannot stop a run.
LONGEST_RETRY_AFTER = 600.0

_SPAN = re.compile(
    r"(?=\d|\.\d)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d*\.?\d+)s)?(?:(\d*\.?\d+)ms)?"
)
_RESET = r"ratelimit\b.*\breset\b"
_HINT = re.compile(
    r"(?:try again in|retry in|retry after|retryDelay\W+|wait)\s*((?:\d+(?:\.\d+)?\s*[a-z]*)+)",
    re.I,
)
"""In the body of a 429: OpenAI's words, and Google's RetryInfo."""


def seconds_in(text: str, now: float) -> float | None:
    """Seconds from now on that a server means: "7", "6m0s", "120ms", or a time.

    Times are those of HTTP ("Wed, 21 Oct 2015 07:28:00 GMT"), ISO 8601, or seconds or milliseconds
    since 1970. Never negative; None where it is none of these.
    """
    text = re.sub(r"\s*(day|hour|min|sec)[a-z]*\s*", lambda m: m.group(1)[0], text.strip())
    if re.fullmatch(r"\d+(\.\d*)?", text):
        value = float(text)
        if value < 1e9:  # Else a time: nobody waits for 30 years.
            return value
        return max(0.0, (value / 1000 if value > 1e11 else value) - now)
    if match := _SPAN.fullmatch(text):
        parts = zip(match.groups(default="0"), (86400, 3600, 60, 1, 0.001), strict=True)
        return sum(float(part) * unit for part, unit in parts)
    for read in (email.utils.parsedate_to_datetime, datetime.datetime.fromisoformat):
        try:
            return max(0.0, read(text).timestamp() - now)
        except (ValueError, OverflowError):
            continue
    return None


def retry_after(
    headers: Mapping[str, str], now: float | None = None, body: str = ""
) -> float | None:
    """Seconds that a server asks to wait; None where there is none, or it cannot be read.

    They are in the headers `retry-after-ms` and `Retry-After`; else in a hint in the body; else in
    `x-ratelimit-reset-*`: the longest of the limits that have nothing left, or the shortest of all.
    `now` is in seconds since 1970.
    """
    now = time.time() if now is None else now
    given = {name.lower(): value for name, value in headers.items()}
    if "retry-after-ms" in given:
        given["retry-after"] = f"{given['retry-after-ms']}ms"
    if "retry-after" in given:
        return seconds_in(given["retry-after"], now)
    if hint := _HINT.search(body):
        return seconds_in(hint.group(1), now)
    resets = {n: seconds_in(v, now) for n, v in given.items() if re.search(_RESET, n)}
    waits = {name: wait for name, wait in resets.items() if wait is not None}
    empty = [w for n, w in waits.items() if given.get(n.replace("reset", "remaining"), "0") == "0"]
    return max(empty) if empty else min(waits.values(), default=None)


def backoff(repetition: int, first_wait: float, dice: random.Random) -> float:
    """Seconds before a repetition (from 1): 0 to `first_wait` * 2^repetition, full jitter."""
    return dice.uniform(0.0, min(LONGEST_WAIT, first_wait * 2.0**repetition))


@dataclass
class Bucket:
    """A token bucket: `per_minute` units a minute, at most a second's worth at once."""

    per_minute: int | None  # None: no limit.
    clock: Callable[[], float] = time.monotonic  # Seconds.
    _free_at: float = float("-inf")

    def wait_for(self, units: float) -> float:
        """Books `units` and returns the seconds to wait before they may be used."""
        if self.per_minute is None:
            return 0.0
        now = self.clock()
        start = max(self._free_at, now - 1.0)
        self._free_at = start + 60.0 * units / self.per_minute
        return max(0.0, start - now)


class Limiter:
    """Lets requests through: so many at once, and requests and tokens a minute; None: no limit."""

    def __init__(
        self,
        concurrency: int,
        rpm: int | None = None,
        tpm: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.concurrency = concurrency
        self.allowed = float(concurrency)
        # First come, first served: else who waits for a place could wait until the end.
        self._places = asyncio.Semaphore(concurrency)
        self._taken_away = 0
        self._clock, self._sleep = clock, sleep
        self._requests, self._tokens = Bucket(rpm, clock), Bucket(tpm, clock)
        self._held_until = self._decreased_at = float("-inf")

    async def acquire(self, tokens: float) -> None:
        """Waits until a request of about `tokens` tokens may be sent."""
        await self._places.acquire()
        try:
            wait = max(self._requests.wait_for(1), self._tokens.wait_for(tokens))
            if wait:
                await self._sleep(wait)
            while (held := self._held_until - self._clock()) > 0:
                await self._sleep(held)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """A request that was let through has ended; its place may be taken away."""
        if self._taken_away < self.concurrency - int(self.allowed):
            self._taken_away += 1
        else:
            self._places.release()

    def answered(self) -> None:
        """The server coped: one more at once after `allowed` such answers."""
        self.allowed = min(float(self.concurrency), self.allowed + 1.0 / self.allowed)
        if self._taken_away > self.concurrency - int(self.allowed):
            self._taken_away -= 1
            self._places.release()

    def overloaded(self, retry_after: float | None) -> None:
        """The server did not cope."""
        now = self._clock()
        if retry_after is not None:
            wait = min(retry_after, LONGEST_RETRY_AFTER)
            self._held_until = max(self._held_until, now + wait)
        if now - self._decreased_at >= DECREASE_AT_MOST_EVERY:
            self._decreased_at = now
            self.allowed = max(1.0, self.allowed * DECREASE)
