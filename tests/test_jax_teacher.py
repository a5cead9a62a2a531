"""A teacher of T5's family answers requests as a server would."""

import contextlib
import dataclasses
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import shipped
from dss_jax.interop import open_model
from dss_jax.interop.formats import read_weights, write_weights
from dss_jax.interop.weights import from_tree
from dss_jax.model.t5 import T5
from dss_jax.teacher.asking import ExtractionRun
from dss_jax.teacher.jax_teacher import JaxTeacher
from dss_jax.teacher.journal import Journal, Request
from dss_jax.train import sharding

VOCABULARY = shipped("tasks") / "vocabularies" / "word_problems.model"
LAYERS = {"num_encoder_layers": 1, "num_decoder_layers": 1}
SHAPE = config.T5Config(vocab_size=1152, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, **LAYERS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from flax import linen as nn

    one = np.ones((1, 2), np.int32)
    params = nn.meta.unbox(T5(SHAPE).init(jax.random.key(0), one, one)["params"])
    folder = tmp_path_factory.mktemp("teacher") / "checkpoint"
    weights = from_tree(SHAPE, jax.device_get(params), origin="test", vocabulary=VOCABULARY)
    write_weights(weights, str(folder), "orbax")
    return f"jax:{folder}"


def requests(count: int = 11, **sampling: float) -> list[Request]:
    body = {"model": "m", "max_tokens": 10, **sampling}
    prompts = ["Tom has " + "3 cards and " * i + "A:" for i in range(count)]
    return [Request(f"r{i}", i % 2, {**body, "prompt": p}) for i, p in enumerate(prompts)]


def texts(checkpoint: str, asked: list[Request], **options: int) -> dict[str, str]:
    teacher = JaxTeacher(checkpoint, **options)
    return {request.key: reply.text for request, reply in teacher.replies(asked)}


def test_samples_are_the_same_in_whatever_batch_and_order(checkpoint: str) -> None:
    asked = requests(temperature=1.0)
    whole = texts(checkpoint, asked, batch_size=16)
    assert len(set(whole.values())) > 8, "requests draw differently"
    assert texts(checkpoint, asked[::-1][:5], batch_size=4) == {
        request.key: whole[request.key] for request in asked[::-1][:5]
    }


def test_parameters_shared_out_over_devices_give_the_same(checkpoint: str) -> None:
    asked = requests(5, temperature=0.0)
    assert texts(checkpoint, asked, fsdp=2) == texts(checkpoint, asked)


def test_one_device_gives_the_same_as_four(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(5, temperature=1.0)
    four = texts(checkpoint, asked)
    alone = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    monkeypatch.setattr(open_model, "make_mesh", lambda _: alone)
    assert texts(checkpoint, asked) == four


def test_a_long_prompt_costs_its_row_alone(checkpoint: str, tmp_path: Path) -> None:
    teacher = JaxTeacher(checkpoint, input_length=30)
    with Journal(tmp_path / "journal") as journal:
        done = teacher.ask(requests(), ExtractionRun(journal))
        replies = [journal.reply(request.key) for request in requests()]
        again = teacher.ask(requests(), ExtractionRun(journal, only_failed=True))
    assert 0 < done.failed < done.answered
    assert [bool(r.refusal) for r in replies] == sorted(bool(r.refusal) for r in replies)
    whole = texts(checkpoint, requests())
    assert all(r.text == whole[q.key] for q, r in zip(requests(), replies, strict=True) if r.text)
    assert "more than the 30 allowed" in replies[-1].refusal
    assert (again.failed, again.answered) == (done.failed, 0)


def test_where_all_prompts_are_too_long_the_run_stops(checkpoint: str, tmp_path: Path) -> None:
    teacher = JaxTeacher(checkpoint, input_length=2)
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(UsageError, match="the first 5 rows were given up: the prompt has"),
    ):
        teacher.ask(requests(), ExtractionRun(journal))


def test_top_k_of_one_is_greedy(checkpoint: str) -> None:
    greedy = texts(checkpoint, requests(5, temperature=0.0))
    one = texts(checkpoint, requests(5, temperature=1.0, top_k=1))
    assert list(one.values()) == list(greedy.values())


def test_a_checkpoint_without_vocabulary_is_refused(checkpoint: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    weights = read_weights(checkpoint.removeprefix("jax:"))
    write_weights(dataclasses.replace(weights, vocabulary=None), str(bare), "orbax")
    with pytest.raises(UsageError, match="has no SentencePiece file"):
        JaxTeacher(f"jax:{bare}")


def test_replies_are_kept_and_asked_once(checkpoint: str, tmp_path: Path) -> None:
    teacher = JaxTeacher(checkpoint, batch_size=4)
    with Journal(tmp_path / "journal") as journal:
        first = teacher.ask(requests(6), ExtractionRun(journal))
        again = teacher.ask(requests(), ExtractionRun(journal))
        assert (first.answered, again.answered, again.reused) == (6, 5, 6)
        replies = [journal.reply(request.key) for request in requests()]
    assert {r.finish_reason for r in replies} <= {"stop", "length"}
    assert all(r.completion_tokens == 10 for r in replies if r.finish_reason == "length")
    assert all(r.prompt_tokens > 3 for r in replies)


SLOW_TEACHER = """
import sys, time
from dss_jax.records.records import Reply
from dss_jax.teacher.asking import ExtractionRun
from dss_jax.teacher.jax_teacher import JaxTeacher
from dss_jax.teacher.journal import Journal, Request

class Teacher(JaxTeacher):
    def __init__(self):
        pass

    def replies(self, requests):
        for request in requests:
            time.sleep(0.01)
            yield request, Reply(text=request.key)

requests = [Request(f"r{i}", 0, {"prompt": f"row {i}"}) for i in range(300)]
with Journal(sys.argv[1]) as journal:
    done = Teacher().ask(requests, ExtractionRun(journal))
    assert all(journal.reply(request.key).text == request.key for request in requests)
print(done.answered, done.reused)
"""


def test_killed_and_run_again_only_the_rest_is_decoded(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    start = [sys.executable, "-c", SLOW_TEACHER, str(journal)]
    process = subprocess.Popen(start)
    while not _kept(journal) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = _kept(journal)
    assert 0 < kept < 300
    again = subprocess.run(start, capture_output=True, text=True, timeout=100)
    assert again.stdout.split() == [str(300 - kept), str(kept)], again.stderr


def _kept(journal: Path) -> int:
    if not journal.exists():
        return 0
    with contextlib.closing(sqlite3.connect(journal, timeout=30)) as db:
        try:
            return db.execute("select count(*) from replies").fetchone()[0]
        except sqlite3.OperationalError:  # Not made yet.
            return 0
