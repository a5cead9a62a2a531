"""What an extraction will cost and how long it will take, before it starts.

There is no price in this code: prices change, and a wrong one is worse than none. They come from
the user, or from a table in LiteLLM's public form (`model_prices_and_context_window.json`), which
is kept up to date for all large providers.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError, nearest

CHARACTERS_PER_TOKEN = 4.0
"""Of English prose in the vocabularies of today's models, as OpenAI's documentation says. Real
counts come from the server, and replace the estimate as the run goes on."""

MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Prices:
    """USD for a million tokens; None: not known.

    Attributes:
      prompt, completion: of the model's input and output.
    """

    prompt: float | None = None
    completion: float | None = None

    def __call__(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """The cost in USD; None where a price is not known."""
        if self.prompt is None or self.completion is None:
            return None
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / MILLION


def find_prices(
    model: str,
    prompt: float | None = None,
    completion: float | None = None,
    table: Path | None = None,
) -> Prices:
    """Prices of a model: those given, else those of the table.

    Raises:
      UsageError: a negative price, only one of two, an unreadable table, or a model not in it.
    """
    if (prompt is None) != (completion is None):
        raise UsageError("give both --price_in and --price_out, USD a million tokens, or neither.")
    if prompt is not None and completion is not None:
        if prompt < 0 or completion < 0:
            raise UsageError("--price_in and --price_out must not be negative.")
        return Prices(prompt=prompt, completion=completion)
    if table is None:
        return Prices()
    try:
        rows = json.loads(table.read_text(encoding="utf-8"))
        found = rows.get(model)
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"the price table {table} cannot be read: {error}.") from error
    if found is None:
        near = nearest(model, rows)
        hint = f" Did you mean {near!r}?" if near else ""
        raise UsageError(
            f"{table} has no price for {model!r}.{hint} Give --price_in and --price_out."
        )
    try:
        return Prices(
            prompt=float(found["input_cost_per_token"]) * MILLION,
            completion=float(found["output_cost_per_token"]) * MILLION,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{table}: {model!r} needs the numbers input_cost_per_token and output_cost_per_token."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is to come.

    Attributes:
      requests: that the journal has no reply to.
      prompt_tokens: estimated from characters.
      completion_tokens: if each completion is as long as the exemplars' answers.
      cost: USD; None: not known.
      seconds: at `concurrency` requests at once, `seconds_per_request` each, within the limits a
        minute.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float


def tokens_of(body: Mapping[str, Any]) -> int:
    """Estimated prompt tokens of a request."""
    texts = [m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]]
    return round(sum(map(len, texts)) / CHARACTERS_PER_TOKEN)


def estimate(
    bodies: Iterable[Mapping[str, Any]],
    completion_tokens: float,
    prices: Prices,
    *,
    concurrency: int,
    seconds_per_request: float = 2.0,
    rpm: int | None = None,
    tpm: int | None = None,
) -> Estimate:
    """Counts what the requests will take.

    Args:
      bodies: of the requests to send.
      completion_tokens: of one completion.
      prices: of the model.
      concurrency: requests at once.
      seconds_per_request: how long the server takes for one.
      rpm, tpm: requests and tokens a minute; None: no limit.
    """
    requests = prompt = 0
    for body in bodies:
        requests += 1
        prompt += tokens_of(body)
    completion = round(requests * completion_tokens)
    seconds = [requests * seconds_per_request / concurrency]
    seconds += [60.0 * requests / rpm] if rpm else []
    seconds += [60.0 * (prompt + completion) / tpm] if tpm else []
    return Estimate(
        requests=requests, prompt_tokens=prompt, completion_tokens=completion,
        cost=prices(prompt, completion), seconds=max(seconds),
    )  # fmt: skip
