"""A run that starts from a checkpoint: shape, vocabulary, parameters, resume without it."""

import argparse
import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from dss_jax.cli import options, sweep, sweep_options, train
from dss_jax.cli.gin_config import read
from dss_jax.core import config, t5gemma
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.sweep_config import cells_of
from dss_jax.core.t5_config import SHAPE_FIELDS
from dss_jax.interop.hf import write_hf
from dss_jax.interop.orbax_folder import read_orbax
from dss_jax.interop.weights import Weights, expected_shapes, flat, from_tree, nested
from dss_jax.run import single
from dss_jax.run.init_from import _model, start_from, with_checkpoint
from dss_jax.run.session import open_session
from dss_jax.train import step as steps

CONFIG = dataclasses.replace(toy.MODEL, vocab_size=500)
"""416 pieces of the toy vocabulary, and rows beyond them."""


@pytest.fixture(scope="module")
def weights() -> Weights:
    rng = np.random.default_rng(0)
    tree = {
        path: 0.3 * rng.standard_normal(shape).astype(np.float32)
        for path, shape in expected_shapes(CONFIG).items()
    }
    vocabulary = {"vocabulary": toy.VOCABULARY, "extra_ids": 0}
    return from_tree(CONFIG, nested(tree), origin="a test", **vocabulary)


@pytest.fixture
def source(weights: Weights, tmp_path: Path) -> Path:
    write_hf(weights, tmp_path / "source")
    return tmp_path / "source"


def make_run(source: Path, folder: Path, **sections: object) -> config.Run:
    """A run as the command line gives it when no model was named."""
    run = toy.make_run(
        model=config.T5Config(dropout_rate=0.2), mesh=config.Mesh(data=2, model=2), **sections
    )
    train = {"output_dir": str(folder), "init_from": str(source), "steps": 2}
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **train))


def test_the_checkpoint_gives_shape_and_vocabulary(source: Path, tmp_path: Path) -> None:
    run = with_checkpoint(make_run(source, tmp_path / "run"), ())
    for name in SHAPE_FIELDS:
        assert getattr(run.model, name) == getattr(CONFIG, name)
    assert run.model.dropout_rate == 0.2
    assert run.vocabulary == config.Vocabulary(path=str(source / "spiece.model"), extra_ids=0)


def test_what_was_given_and_differs_is_named(source: Path, tmp_path: Path) -> None:
    run = make_run(source, tmp_path / "run")
    given = [f"T5Config.{name}" for name in SHAPE_FIELDS]
    with pytest.raises(UsageError) as error:
        with_checkpoint(run, given)
    text = str(error.value)
    assert "T5Config.emb_dim is 768, in the checkpoint 16" in text
    assert "T5Config.vocab_size is 32128, in the checkpoint 500" in text
    assert "mlp_activations" not in text
    # None is the vocabulary's size: the checkpoint's rows take its place.
    same = dataclasses.replace(run, model=dataclasses.replace(CONFIG, vocab_size=None))
    assert with_checkpoint(same, given).model.vocab_size == 500
    with pytest.raises(UsageError, match=r"Vocabulary\.extra_ids is 100"):
        with_checkpoint(run, ["Vocabulary.extra_ids"])


def test_dropout_of_attention_is_the_runs() -> None:
    own = dict(toy.GEMMA.gemma or ())
    there = dataclasses.replace(toy.GEMMA, gemma=tuple(sorted(own.items())))
    given = dataclasses.replace(
        there, gemma=tuple({**own, "attention_dropout": 0.25, "rope_theta": 10_000}.items())
    )
    found = _model(given, there, ["T5Config.gemma"], "a test")
    assert t5gemma.of(found) == t5gemma.of(given)
    assert _model(given, there, (), "a test").gemma == there.gemma
    other = dataclasses.replace(there, gemma=tuple({**own, "sliding_window": 9}.items()))
    with pytest.raises(UsageError, match=r"T5Config\.gemma is .*sliding_window=9"):
        _model(other, there, ["T5Config.gemma"], "a test")


def test_another_vocabulary_is_refused(source: Path, tmp_path: Path, toy_store) -> None:
    other = tmp_path / "other.model"
    other.write_bytes(toy.VOCABULARY.read_bytes() + b"\n")
    run = make_run(source, tmp_path / "run", vocabulary=config.Vocabulary(path=str(other)))
    with pytest.raises(UsageError, match=r"other\.model is not that of"):
        with_checkpoint(run, ())
    # The store may have been made with another one.
    run = with_checkpoint(make_run(source, tmp_path / "run"), ())
    shutil.copy(other, source / "spiece.model")
    refused = pytest.raises(UsageError, match="is not that of the Hugging Face folder")
    with toy.linear_programs(), refused:
        single.train(run, toy_store, TEXT_ACCURACY)
    for name in ("spiece.model", "tokenizer.json"):
        (source / name).unlink()
    with pytest.raises(UsageError, match="Give it with --vocabulary FILE"):
        with_checkpoint(make_run(source, tmp_path / "run"), ())


def test_a_vocabulary_of_more_ids_than_the_embedding_has_rows(source: Path, tmp_path: Path) -> None:
    """Refused before the store is made and the run's folder with it."""
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(UsageError, match=r"(?s)has 516 ids \(100 .* only 500 rows.*extra_ids"):
        with_checkpoint(make_run(source, tmp_path / "run"), ())
    for name in ("spiece.model", "tokenizer.json"):
        (source / name).unlink()
    given = make_run(
        source, tmp_path / "run", vocabulary=config.Vocabulary(path=str(toy.VOCABULARY))
    )
    with pytest.raises(UsageError, match="only 500 rows"):
        with_checkpoint(given, ())


def test_a_cell_of_a_sweep_finds_the_vocabulary_where_it_runs(source: Path, tmp_path: Path) -> None:
    """The sweep's machine and that of the run may have copies of the checkpoint of their own."""
    parser = argparse.ArgumentParser()
    sweep.add_flags(parser)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "any.gin").write_text("T5Config.dropout_rate = 0.2\n")
    words = ["--tasks", "word_problems", "--models", "any", "--gin_search_paths", str(tmp_path)]
    words += ["--output_dir", str(tmp_path / "s"), "--init_from", str(source)]
    grid = sweep_options.read_grid(options.parse(parser, words))
    planned = sweep_options.resolve(grid, cells_of(grid.sweep)[1:2])[0]
    assert planned.run.vocabulary.path == str(source / "spiece.model")
    planned.hand_over()
    file = Path(str(planned.run.train.output_dir)) / "config.gin"
    assert "Vocabulary.path = None\n" in file.read_text()
    parser = argparse.ArgumentParser()
    train.add_flags(parser)
    resolved = options.resolve(options.parse(parser, ["--gin_file", str(file)]))
    assert resolved.run == planned.run
    assert resolved.run.model.emb_dim == CONFIG.emb_dim


def test_it_starts_from_exactly_those_parameters(
    source: Path, weights: Weights, tmp_path: Path, toy_store, said: list[str]
) -> None:
    run = with_checkpoint(make_run(source, tmp_path / "run"), ())
    session = open_session(run, tmp_path / "run", toy_store, TEXT_ACCURACY)
    state = start_from(session.run, session.program, toy_store)
    assert said == [f"starts from the Hugging Face folder {source}"]
    assert int(state.step) == 0
    wanted = session.program.abstract_state.params
    assert jax.tree.structure(state.params) == jax.tree.structure(wanted)
    for path, leaf in flat(state.params).items():
        assert leaf.sharding == flat(wanted)[path].sharding
        np.testing.assert_array_equal(leaf, weights.leaves[path].read())


@pytest.mark.slow
def test_only_what_the_checkpoint_lacks_is_drawn(
    source: Path, weights: Weights, tmp_path: Path, toy_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    real = steps.draw_params
    monkeypatch.setattr(steps, "draw_params", lambda *args: drawn.append(1) or real(*args))

    def start(run: config.Run) -> tuple[dict, dict]:
        run = with_checkpoint(run, ())
        session = open_session(run, tmp_path / "run", toy_store, TEXT_ACCURACY)
        drawn.clear()
        state = start_from(session.run, session.program, toy_store)
        return flat(state.params), flat(session.program.init().params)

    params, _ = start(make_run(source, tmp_path / "run"))
    assert len(drawn) == 1, "by init alone"
    params, fresh = start(make_run(source, tmp_path / "run", lora=config.Lora(rank=2)))
    added = params.keys() - weights.leaves.keys()
    assert {path.rpartition("/")[2] for path in added} == {"lora_a", "lora_b"}
    for path, leaf in params.items():
        expected = fresh[path] if path in added else weights.leaves[path].read()
        np.testing.assert_array_equal(leaf, expected)


@pytest.mark.slow
def test_it_goes_on_when_the_checkpoint_is_gone(
    source: Path, tmp_path: Path, toy_store, said: list[str]
) -> None:
    folder = tmp_path / "run"
    first = with_checkpoint(make_run(source, folder), ())
    single.train(first, toy_store, TEXT_ACCURACY)
    assert f"starts from the Hugging Face folder {source}" in said
    assert any("exact match near 0 is normal" in line for line in said)
    saved = read([folder / "config.gin"]).run()
    assert saved.model == first.model
    assert saved.train.init_from == str(source)
    shutil.rmtree(source)
    (folder / "results.json").unlink()
    again = with_checkpoint(make_run(source, folder), ())
    assert again.model == first.model
    assert again.vocabulary.path == str(folder / "spiece.model")
    said.clear()
    single.train(again, toy_store, TEXT_ACCURACY)
    assert "going on from the checkpoint of step 2" in said
    # A run is itself a checkpoint to start from.
    third = with_checkpoint(make_run(folder, tmp_path / "next"), ())
    assert third.model == first.model
    session = open_session(third, tmp_path / "next", toy_store, TEXT_ACCURACY)
    state = start_from(session.run, session.program, toy_store)
    for path, leaf in read_orbax(folder).leaves.items():
        np.testing.assert_array_equal(flat(state.params)[path], leaf.read())


def test_without_a_checkpoint_it_says_so(tmp_path: Path, toy_store, said: list[str]) -> None:
    run = toy.make_run()
    train = dataclasses.replace(run.train, output_dir=str(tmp_path / "run"), steps=1)
    with toy.linear_programs():
        single.train(dataclasses.replace(run, train=train), toy_store, TEXT_ACCURACY)
    assert "starts from random parameters (Train.seed = 0)" in said
