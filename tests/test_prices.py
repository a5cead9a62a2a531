"""Prices, estimates, and what is not known."""

import json
from pathlib import Path

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.teacher import prices
from dss_jax.teacher.prices import Prices, estimate, find_prices, tokens_of

GIVEN = Prices(prompt=0.15, completion=0.6)


def table(folder: Path, content: object) -> Path:
    file = folder / "prices.json"
    file.write_text(json.dumps(content))
    return file


def test_a_known_provider_has_prices_with_their_source() -> None:
    found = find_prices("gpt-4o-mini")
    assert found.prompt is not None
    assert found.completion is not None
    assert 0 < found.prompt < found.completion
    assert found.source.startswith("genai-prices ")
    assert "https://" in found.source
    at_google = "https://generativelanguage.googleapis.com/v1beta/openai/"
    assert "google" in find_prices("gemini-2.5-flash", base_url=at_google).source


def test_the_batch_api_costs_less() -> None:
    one, batch = find_prices("gpt-4o-mini"), find_prices("gpt-4o-mini", batch=True)
    assert (batch.prompt, batch.completion) == (one.prompt / 2, one.completion / 2)


@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("gpt-4o-mini", "http://localhost:8000/v1"),
        ("gpt-4o-mini", "https://llm.example.org/v1"),
        ("no-such-model", prices.HOSTED),
        ("jax:runs/teacher", prices.HOSTED),
    ],
)
def test_what_is_not_known_has_no_cost_rather_than_none(model: str, base_url: str) -> None:
    found = find_prices(model, base_url=base_url)
    assert found(1_000_000, 1_000_000) is None
    assert "--price_in" in found.source


def test_given_prices_go_before_a_table_and_the_library(tmp_path: Path) -> None:
    row = {"input_cost_per_token": 2e-6, "output_cost_per_token": 8e-6}
    file = table(tmp_path, {"gpt-4o-mini": row})
    assert find_prices("gpt-4o-mini", 1.0, 3.0, file)(1_000_000, 1_000_000) == 4.0
    from_table = find_prices("gpt-4o-mini", table=file)
    assert from_table(1_000_000, 1_000_000) == pytest.approx(10.0)
    assert from_table.source == "prices.json"
    assert find_prices("mine", 0.0, 0.0)(5, 5) == 0.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"gpt-4o-mino": {}}, "Did you mean 'gpt-4o-mino'"),
        ({"gpt-4o-mini": {"input_cost_per_token": 1e-6}}, "output_cost_per_token"),
        ([], "cannot be read"),
    ],
)
def test_a_table_that_does_not_serve_is_refused(content: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        find_prices("gpt-4o-mini", table=table(tmp_path, content))


@pytest.mark.parametrize("given", [(1.0, None), (None, 1.0), (-1.0, 1.0)])
def test_half_a_price_is_refused(given: tuple[float | None, float | None]) -> None:
    with pytest.raises(UsageError, match="--price_in and --price_out"):
        find_prices("m", *given)


def test_an_estimate_counts_tokens_cost_and_time() -> None:
    bodies = [{"prompt": "x" * 3500}] * 60
    found = estimate(bodies, 200, GIVEN, concurrency=10)
    assert (found.requests, found.prompt_tokens, found.completion_tokens) == (60, 60_000, 12_000)
    assert found.cost == pytest.approx(0.06 * 0.15 + 0.012 * 0.6)
    assert found.seconds == 12
    assert estimate(bodies, 200, GIVEN, concurrency=10, rpm=30).seconds == 120
    assert estimate(bodies, 200, GIVEN, concurrency=10, tpm=36_000).seconds == 120
    assert estimate(bodies, 200, Prices(), concurrency=10).cost is None


def test_a_chat_has_tokens_around_each_message() -> None:
    chat = {"messages": [{"role": "user", "content": "x" * 350}] * 3}
    assert tokens_of(chat) == tokens_of({"prompt": "x" * 1050}) + 3 * prices.TOKENS_PER_MESSAGE
