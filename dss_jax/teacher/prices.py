"""What an extraction will cost and how long it will take, before it starts.

There is no price in this code: prices change, and a wrong one is worse than none. They come from
the user, from a table in LiteLLM's public form (`model_prices_and_context_window.json`), or from
the library genai-prices, whose releases are dated and name the providers' pages. A server that the
library does not know has no price, whatever its model is called.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dss_jax.core import strict_json
from dss_jax.core.errors import UsageError, nearest

CHARACTERS_PER_TOKEN = 3.5
"""Measured on 100 prompts each of the benchmarks (ANLI, CQA, e-SNLI, SVAMP): 3.3 to 4.2 in the
vocabularies of GPT-4, GPT-4o and DeepSeek, 3.5 to 4.1 in Claude's published one, 3.5 to 4.0 in
T5's. So an estimate is 7 % too low at worst and 20 % too high. The server's counts replace it as
the run goes on."""

TOKENS_PER_MESSAGE = 4  # Around each message of a chat, as OpenAI's cookbook counts.
HOSTED = "https://api.openai.com/v1"  # The server where none is named: OpenAI's.
SECONDS_PER_REQUEST = 2.0  # That a server is taken to need.
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Prices:
    """USD for a million tokens of the model's input and output; None: not known."""

    prompt: float | None = None
    completion: float | None = None
    source: str = "give --price_in and --price_out"  # Where they are from, for people.

    def __call__(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """The cost in USD; None where a price is not known."""
        if self.prompt is None or self.completion is None:
            return None
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / MILLION

    @property
    def note(self) -> str:
        """Prices and source for the header of a record file; "" where they are not known."""
        if self.prompt is None or self.completion is None:
            return ""
        usd = f"{self.prompt:g} USD in, {self.completion:g} USD out"
        return f"{usd} a million tokens, {self.source}"


def find_prices(
    model: str,
    prompt: float | None = None,
    completion: float | None = None,
    table: Path | None = None,
    *,
    base_url: str = HOSTED,
    batch: bool = False,
) -> Prices:
    """Prices of a model: those given, else those of the table, else those of genai-prices.

    With `batch` they are those of the batch API, where genai-prices has them.

    Raises:
      UsageError: a negative price, only one of two, an unreadable table, or a model not in it.
    """
    if (prompt is None) != (completion is None):
        raise UsageError("give both --price_in and --price_out, USD a million tokens, or neither.")
    if prompt is not None and completion is not None:
        if prompt < 0 or completion < 0:
            raise UsageError("--price_in and --price_out must not be negative.")
        return Prices(prompt=prompt, completion=completion, source="as given")
    if table is not None:
        return _table_prices(model, table)
    return _known_prices(model, base_url, batch)


def _known_prices(model: str, base_url: str, batch: bool) -> Prices:
    """Of requests shorter than those that some providers charge more for."""
    from genai_prices import Usage, calc_price

    usage = Usage(input_tokens=1000, output_tokens=1000)
    context = {"processing": "batch"} if batch else None
    try:
        found = calc_price(usage, model, provider_api_url=base_url, price_context=context)
    except LookupError:
        return Prices()
    pages = found.provider.pricing_urls or [found.provider.name]
    return Prices(
        prompt=float(found.input_price * 1000),
        completion=float(found.output_price * 1000),
        source=f"genai-prices {version('genai-prices')}; see {pages[0]}",
    )


def _table_prices(model: str, table: Path) -> Prices:
    try:
        rows = strict_json.loads(table.read_text(encoding="utf-8"))
        found = rows.get(model)
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"the price table {table} cannot be read: {error}.") from error
    if found is None:
        near = nearest(model, rows)
        hint = f" Did you mean {near!r}?" if near else ""
        raise UsageError(
            f"{table} has no price for {model!r}.{hint} Give --price_in and --price_out."
        )
    names = ("input_cost_per_token", "output_cost_per_token")
    try:
        prompt, completion = (float(found[name]) * MILLION for name in names)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{table}: {model!r} needs the numbers {' and '.join(names)}.") from error
    return Prices(prompt=prompt, completion=completion, source=table.name)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is to come."""

    requests: int  # That the journal has no reply to.
    prompt_tokens: int  # Estimated from characters.
    completion_tokens: int  # If each completion is as long as the exemplars' answers.
    cost: float | None  # USD; None: not known.
    seconds: float  # At `concurrency` requests at once, within the limits a minute.


def tokens_of(body: Mapping[str, Any]) -> int:
    """Estimated prompt tokens of a request."""
    if "messages" not in body:
        return round(len(body["prompt"]) / CHARACTERS_PER_TOKEN)
    characters = sum(len(message["content"]) for message in body["messages"])
    around = TOKENS_PER_MESSAGE * len(body["messages"])
    return round(characters / CHARACTERS_PER_TOKEN) + around


def estimate(
    bodies: Iterable[Mapping[str, Any]],
    completion_tokens: float,
    prices: Prices,
    *,
    concurrency: int,
    rpm: int | None = None,
    tpm: int | None = None,
) -> Estimate:
    """Counts what requests of these bodies will take, each with so many completion tokens.

    `concurrency` are requests at once; `rpm`, `tpm` requests and tokens a minute, None: no limit.
    """
    counts = [tokens_of(body) for body in bodies]
    requests, prompt = len(counts), sum(counts)
    completion = round(requests * completion_tokens)
    seconds = [requests * SECONDS_PER_REQUEST / concurrency]
    seconds += [60.0 * requests / rpm] if rpm else []
    seconds += [60.0 * (prompt + completion) / tpm] if tpm else []
    return Estimate(
        requests=requests,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost=prices(prompt, completion),
        seconds=max(seconds),
    )
