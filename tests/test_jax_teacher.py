"""A teacher of T5's family answers requests as a server would."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import shipped
from dss_jax.experiment import jax_teacher
from dss_jax.experiment.jax_teacher import JaxTeacher, TeacherOptions
from dss_jax.interop.formats import write_weights
from dss_jax.interop.weights import from_tree
from dss_jax.model.t5 import T5
from dss_jax.teacher.jobs import Job
from dss_jax.teacher.journal import Journal
from dss_jax.train import sharding

VOCABULARY = shipped("tasks") / "vocabularies" / "word_problems.model"
SHAPE = config.T5Config(
    vocab_size=1152, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16,
    num_encoder_layers=1, num_decoder_layers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from flax import linen as nn

    one = np.ones((1, 2), np.int32)
    params = nn.meta.unbox(T5(SHAPE).init(jax.random.key(0), one, one)["params"])
    folder = tmp_path_factory.mktemp("teacher") / "checkpoint"
    weights = from_tree(SHAPE, jax.device_get(params), origin="test", vocabulary=VOCABULARY)
    write_weights(weights, str(folder), "orbax")
    return f"jax:{folder}"


def jobs(count: int = 11, **sampling: float) -> list[Job]:
    return [
        Job(f"r{i}", i % 2, {"model": "m", "prompt": "Tom has " + "3 cards and " * i + "A:",
                             "max_tokens": 10, **sampling})
        for i in range(count)
    ]  # fmt: skip


def texts(checkpoint: str, asked: list[Job], **options: int) -> dict[str, str]:
    teacher = JaxTeacher(checkpoint, TeacherOptions(**options))
    return {job.key: reply.text for job, reply in teacher.replies(asked)}


def test_samples_are_the_same_in_whatever_batch_and_order(checkpoint: str) -> None:
    asked = jobs(temperature=1.0)
    whole = texts(checkpoint, asked, batch_size=16)
    assert len(set(whole.values())) > 8, "requests draw differently"
    assert texts(checkpoint, asked[::-1][:5], batch_size=4) == {
        job.key: whole[job.key] for job in asked[::-1][:5]
    }


def test_parameters_shared_out_over_devices_give_the_same(checkpoint: str) -> None:
    asked = jobs(5, temperature=0.0)
    assert texts(checkpoint, asked, fsdp=2) == texts(checkpoint, asked)


def test_one_device_gives_the_same_as_four(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = jobs(5, temperature=1.0)
    four = texts(checkpoint, asked)
    alone = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    monkeypatch.setattr(jax_teacher, "make_mesh", lambda _: alone)
    assert texts(checkpoint, asked) == four


def test_a_long_prompt_is_refused_by_row(checkpoint: str) -> None:
    with pytest.raises(UsageError, match=r"row 'r\d+': its prompt has \d+ tokens, more than the 9"):
        texts(checkpoint, jobs(), input_length=9)


def test_a_checkpoint_without_vocabulary_is_refused(checkpoint: str, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    weights = jax_teacher.read_weights(checkpoint.removeprefix("jax:"))
    write_weights(dataclasses.replace(weights, vocabulary=None), str(bare), "orbax")
    with pytest.raises(UsageError, match="has no SentencePiece file"):
        JaxTeacher(f"jax:{bare}", TeacherOptions())


def test_replies_are_kept_and_asked_once(checkpoint: str, tmp_path: Path) -> None:
    teacher = JaxTeacher(checkpoint, TeacherOptions(batch_size=4))
    with Journal(tmp_path / "journal") as journal:
        first = jax_teacher.ask(teacher, jobs(6), journal)
        again = jax_teacher.ask(teacher, jobs(), journal)
        assert (first.answered, again.answered, again.reused) == (6, 5, 6)
        replies = [journal.reply(job.key) for job in jobs()]
    assert {r.finish_reason for r in replies} <= {"stop", "length"}
    assert all(r.completion_tokens == 10 for r in replies if r.finish_reason == "length")
    assert all(r.prompt_tokens > 3 for r in replies)
