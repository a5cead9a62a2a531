"""What is in a request, and what becomes of fields that a server does not have."""

import asyncio
import dataclasses
import json
import time
from pathlib import Path

import pytest
from protocol_server import answering

from dss_jax.cli.extraction import ExtractionBar
from dss_jax.cli.main import main
from dss_jax.core.registry import load_task
from dss_jax.data import rows
from dss_jax.records.records import Reply
from dss_jax.teacher import client, replies
from dss_jax.teacher.asking import ExtractionProgress, ExtractionRun
from dss_jax.teacher.extraction import Extraction, write
from dss_jax.teacher.journal import Journal
from dss_jax.teacher.prices import Prices
from dss_jax.teacher.replies import Fatal, Rejected

BODY = {"model": "m", "messages": [], "temperature": 0.0, "max_tokens": 256, "stop": ["\nQ:"]}
BODY["reasoning"] = 1

GEMINIS = {"code": 400, "message": "API key not valid. Please pass a valid API key."}


def shown(capsys: pytest.CaptureFixture, *flags: str) -> str:
    start = ["extract", "--task", "word_problems", "--model", "m", "--show_prompt", "1"]
    assert main([*start, *flags]) == 0
    return capsys.readouterr().out


def test_fields_are_left_out_and_added(capsys: pytest.CaptureFixture) -> None:
    plain = shown(capsys)
    assert '--- stop\n["\\nQ:"]' in plain
    assert "--- temperature\n0.0" in plain
    flags = "--omit stop --omit temperature --max_tokens_field max_completion_tokens --top_k 5"
    reasoning = shown(capsys, *flags.split(), "--extra_body", '{"reasoning_effort": "low"}')
    for name in ("stop", "temperature", "max_tokens"):
        assert f"--- {name}\n" not in reasoning
    assert "--- max_completion_tokens\n256" in reasoning
    assert '--- reasoning_effort\n"low"' in reasoning
    assert "--- top_k\n5" in reasoning
    assert "max_tokens" not in shown(capsys, "--omit", "max_tokens")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--extra_body", "{low}"), "--extra_body must be JSON, not '{low}'"),
        (("--extra_body", '{"a": NaN}'), "NaN is no JSON"),
        (("--extra_body", "[1]"), "--extra_body must be a JSON object"),
        (("--extra_body", '{"n": 5}'), "--extra_body may not hold 'n'"),
        (("--model", "jax:DIR", "--omit", "stop"), "--omit is for servers"),
        (("--top_k", "0"), "--top_k must be at least 1"),
    ],
)
def test_wrong_fields_are_told(capsys: pytest.CaptureFixture, flags: tuple, said: str) -> None:
    start = ["extract", "--task", "word_problems", "--model", "m", "--show_prompt", "1"]
    assert main([*start, *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "param", "message"),
    [  # As OpenAI, xAI and FastAPI write them.
        ("stop", "stop", "Unsupported parameter: 'stop' is not supported with this model."),
        (
            "temperature",
            "temperature",
            "Unsupported value: 'temperature' does not support 0 with "
            "this model. Only the default (1) value is supported.",
        ),
        (
            "max_tokens",
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with "
            "this model. Use 'max_completion_tokens' instead.",
        ),
        ("stop", None, "Argument not supported on this model: stop"),
        ("reasoning", None, "Unrecognized request argument supplied: reasoning"),
        # Of one row.
        (None, "max_tokens", "max_tokens is too large: 256. This model supports at most 100."),
        (None, None, "Do not stop: unsupported characters in the prompt"),
        (None, "messages", "Unsupported value in 'messages'"),
    ],
)
def test_a_field_that_is_not_supported_is_found(
    field: str | None, param: str | None, message: str
) -> None:
    assert replies.refused_field(message, param, BODY) == field


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (
            {"error": {"message": "Unsupported parameter: 'stop'", "param": "stop"}},
            Fatal,
            "400: Unsupported parameter: 'stop'. Add --omit stop;",
        ),
        (
            {"error": {"message": "Unsupported parameter: 'reasoning'"}},
            Fatal,
            "Take 'reasoning' out of --extra_body",
        ),
        ([{"error": GEMINIS}], Fatal, "400: API key not valid"),
        ({"error": {"message": "The prompt is too long", "param": "messages"}}, Rejected, "long"),
    ],
)
def test_a_refusal_of_all_requests_is_told_from_one(answer: object, kind: type, said: str) -> None:
    async def work(url: str) -> None:
        send = client.Client(url, "NO_KEY")
        try:
            await send(BODY)
        finally:
            await send.close()

    with answering((400, answer, {})) as url, pytest.raises(kind) as raised:
        asyncio.run(work(url))
    assert said in str(raised.value)


def test_the_progress_projects_the_cost(capsys: pytest.CaptureFixture) -> None:
    what = Extraction(task=load_task("word_problems"), split="train", model="m", samples=2)
    # Of 200 requests 150 are to be sent; 100,000 tokens of each kind after 10: 0.3 USD.
    bar = ExtractionBar(what, 100, 150, Prices(prompt=1.0, completion=2.0))
    told = ExtractionProgress(answered=10, failed=5, reused=20)
    told.prompt_tokens = told.completion_tokens = 100_000
    bar(told)
    assert bar._bar.n == 65
    # 135 more at 0.03 each.
    assert bar.state(told)["USD"] == "0.30 of about 4.35"
    told.answered, told.reused = 145, 50
    bar(told)
    assert bar._bar.n == 200
    bar.close()
    assert "USD" not in ExtractionBar(what, 1, 1, Prices()).state(told)


def test_totals_count_what_was_paid_for_once(tmp_path: Path) -> None:
    """Two rows with one text share a request; time and repetitions are those of all runs."""
    task = load_task("word_problems")
    (example, *_) = rows.examples(task, "train", None)
    twins = [example, dataclasses.replace(example, id="twin")]
    what = Extraction(task=task, split="train", model="m", sampling={"temperature": 0.0})
    out = tmp_path / "out.jsonl"
    for seconds in (2.0, 3.0):
        with Journal(tmp_path / "journal") as journal:
            (request,) = what.requests([example])
            journal.put(request, Reply(text="x", prompt_tokens=100, completion_tokens=10))
            run = ExtractionRun(journal, extraction=what.sha256)
            for answered, retries, took in ((0, 0, 9.0), (1, 1, 1.0), (2, 4, seconds)):
                # What got no reply is not counted.
                run.progress.answered, run.progress.retries = answered, retries
                run._started = time.monotonic() - took
                run.report()
            header = write(what, twins, journal, out, price=Prices(prompt=1, completion=1))
    assert header.totals["requests"] == 1
    assert header.totals["prompt_tokens"] == 100
    assert header.totals["cost_usd"] == pytest.approx(110e-6)
    assert (header.totals["seconds"], header.totals["retries"]) == (5.0, 8)
    assert json.loads(out.read_text().splitlines()[0])["totals"] == header.totals


def test_a_run_without_any_answer_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(self: client.Client, body: object) -> Reply:
        raise Rejected("400: no")

    monkeypatch.setattr(client.Client, "__call__", refused)
    what = ["--task", "word_problems", "--model", "m", "--limit", "2"]
    where = ["--base_url", "http://127.0.0.1:1/v1", "--out", str(tmp_path / "o.jsonl")]
    assert main(["extract", *what, *where]) == 1


def test_journals_of_one_file_keep_their_efforts_apart(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.note_run("a", 1.5, 2)
        assert journal.effort("a") == (1.5, 2)
        assert journal.effort("b") == (0.0, 0)
