"""CTranslate2's folders: what they compute is what our model does, or nothing is written."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import student_maker
import toy
from t5_weights import BASE, MODELS, UNUSED, V1_0, random_weights

from dss_jax.cli.main import main
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID
from dss_jax.core.t5_config import GREEDY
from dss_jax.interop import ctranslate2 as ours
from dss_jax.interop.weights import expected_shapes
from dss_jax.model.decoding import decode
from dss_jax.model.sampling import SampleSearch
from dss_jax.student import ct2
from dss_jax.student.load import load

ctranslate2 = pytest.importorskip("ctranslate2", reason="needs pip install 'dss-jax[ctranslate2]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder in float32 of each of the models."""

    @functools.cache
    def made(name: str) -> Path:
        out = tmp_path_factory.mktemp("ct2") / "folder"
        ours.write_ct2(random_weights(MODELS[name]), out)
        return out

    return made


class TestConversion:
    @pytest.mark.parametrize("name", MODELS)
    def test_log_probabilities_are_ours(self, name: str, tmp_path: Path) -> None:
        found = ours.write_ct2(random_weights(MODELS[name]), tmp_path / "out")
        assert found.tokens == sum(n for _, n in ours.LENGTHS)
        assert found.error < 1e-5
        assert found.largest < 1e-4

    @pytest.mark.parametrize("quantization", list(ours.TOLERANCES)[1:])
    def test_fewer_bits_cost_little(self, quantization: str, tmp_path: Path) -> None:
        found = ours.write_ct2(random_weights(BASE), tmp_path / "out", quantization)
        # Not all processors have products of 16 bits.
        supported = ours.load().get_supported_compute_types("cpu")
        eight = quantization == "int16" and "int16" not in supported
        allowed = ours.TOLERANCES["int8" if eight else quantization]
        assert 1e-4 < found.error < 0.4 * allowed
        sizes = {"int8": 1, "int8_float16": 1, "int16": 2, "float16": 2}
        whole = sum(np.prod(shape) for shape in expected_shapes(BASE).values())
        size = (tmp_path / "out" / "model.bin").stat().st_size
        assert size == pytest.approx(sizes[quantization] * whole, rel=0.25)

    def test_a_head_that_is_scaled_by_mistake_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As CTranslate2's own loader does with a v1.1 folder of transformers 5.
        real = ours._spec

        def scaled(tree: dict, config: T5Config, *names: Any) -> Any:
            spec = real(tree, config, *names)
            spec.decoder.scale_outputs = config.emb_dim**-0.5
            return spec

        monkeypatch.setattr(ours, "_spec", scaled)
        for quantization in ("float32", "int8"):
            with pytest.raises(UsageError, match=r"(?s)is not what.*Nothing was written"):
                ours.write_ct2(random_weights(BASE), tmp_path / "out", quantization)
        assert list(tmp_path.iterdir()) == []
        # In v1.0 that is right.
        ours.write_ct2(random_weights(V1_0), tmp_path / "v1_0")

    @pytest.mark.parametrize("change", ["epsilon", "distance", "queries", "activation"])
    def test_a_small_difference_is_refused(
        self, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = ours._spec

        def other(tree: dict, config: T5Config, *names: Any) -> Any:
            spec = real(tree, config, *names)
            if change == "epsilon":
                spec.config.layer_norm_epsilon = 0.03
            elif change == "distance":
                for layer in spec.encoder.layer:
                    layer.self_attention.relative_attention_max_distance = np.int32(64)
            elif change == "queries":
                spec.decoder.layer[1].attention.queries_scale = 0.9
            else:
                spec.encoder.activation = np.int8(3)  # The exact gelu.
            return spec

        monkeypatch.setattr(ours, "_spec", other)
        with pytest.raises(UsageError, match="Nothing was written"):
            ours.write_ct2(random_weights(BASE), tmp_path / "out")

    def test_each_row_has_a_name_of_its_own(self, folder: Callable[[str], Path]) -> None:
        names = json.loads((folder("v1_1") / ct2.TOKENS).read_text())
        assert len(set(names)) == len(names) == BASE.vocab_size
        assert names[:3] == ["<pad>", "</s>", "<unk>"]
        assert names[416:427] == [*(f"<extra_id_{i}>" for i in range(9, -1, -1)), "<unused_0>"]
        assert names[UNUSED] == "<unused_14>"
        settings = json.loads((folder("v1_1") / "config.json").read_text())
        assert settings["decoder_start_token"] == "<pad>"
        assert settings["eos_token"] == "</s>"
        assert settings["add_source_eos"] is False

    def test_what_cannot_be_written(self, tmp_path: Path) -> None:
        whole = random_weights(BASE)
        with pytest.raises(UsageError, match=r"no SentencePiece file beside it.*--vocabulary"):
            ours.write_ct2(dataclasses.replace(whole, vocabulary=None), tmp_path / "out")
        with pytest.raises(UsageError, match="516 ids"):
            ours.write_ct2(dataclasses.replace(whole, extra_ids=100), tmp_path / "out")
        config = dataclasses.replace(BASE, mlp_activations=("gelu", "relu"))
        with pytest.raises(UsageError, match="no feed-forward layer"):
            ours.write_ct2(random_weights(config), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


@functools.lru_cache
def greedy(name: str, longest: int) -> Callable[[np.ndarray], Any]:
    weights = random_weights(MODELS[name])
    search, model = SampleSearch(GREEDY), toy.T5(weights.config)
    tree = jax.tree.map(jnp.asarray, weights.tree())
    return jax.jit(lambda x: decode(model, tree, x, search, max_decode_length=longest))


def inputs(count: int, seed: int = 1, longest: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count)
    return [[*map(int, rng.integers(2, 426, n)), EOS_ID] for n in lengths]


def padded(rows: list[list[int]]) -> np.ndarray:
    found = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, ids in zip(found, rows, strict=True):
        row[: len(ids)] = ids
    return found


class TestEngine:
    @pytest.mark.parametrize("name", ["v1_0", "v1_1"])
    def test_it_writes_what_our_engine_writes(
        self, name: str, folder: Callable[[str], Path]
    ) -> None:
        engine, vocabulary = ct2.open_engine(folder(name), threads=1)
        assert (vocabulary.vocab_size, engine.name) == (426, "ctranslate2")
        rows = inputs(70)
        found = engine.generate(rows, 8)
        expected = greedy(name, 8)(padded(rows))
        tokens, log_probs = np.asarray(expected.tokens)[:, 0], np.asarray(expected.log_probs)[:, 0]
        for one, own, log_prob in zip(found, tokens.tolist(), log_probs, strict=True):
            assert one.ended == (EOS_ID in own)
            assert one.ids == own[: own.index(EOS_ID) if one.ended else 8]
            assert one.log_prob == pytest.approx(log_prob, abs=1e-3)
        if name == "v1_1":
            # Some end at once, which min_decoding_length=1 would not let them; some write a row
            # that has no piece.
            assert {0, 8} <= {len(one.ids) for one in found}
            assert any(UNUSED in one.ids for one in found)
            assert sum(one.ended for one in found) > 10

    def test_another_student_of_the_same_place_is_known(self, tmp_path: Path) -> None:
        origins = []
        for seed in (0, 0, 1):
            ours.write_ct2(random_weights(V1_0, seed), tmp_path / "out")
            origins.append(ct2.open_engine(tmp_path / "out", threads=1)[0].origin)
            shutil.rmtree(tmp_path / "out")
        assert origins[0] == origins[1] != origins[2]

    def test_its_search_is_greedy(
        self, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, _ = ct2.open_engine(folder("v1_1"), threads=1)
        rows = inputs(40)
        real = engine._translator.translate_batch
        beams = functools.partial(engine.generate, rows, 8)
        found = beams()
        engine._translator = type("Beams", (), {})()
        engine._translator.translate_batch = lambda *a, **k: real(*a, **{**k, "beam_size": 2})
        assert [one.ids for one in beams()] != [one.ids for one in found]

    def test_rows_do_not_depend_on_their_neighbours(self, folder: Callable[[str], Path]) -> None:
        engine, _ = ct2.open_engine(folder("v1_1"), threads=1)
        rows = inputs(40, longest=90)
        whole = engine.generate(rows, 6)
        for n in (0, 7, 39):
            (alone,) = engine.generate([rows[n]], 6)
            assert alone.ids == whole[n].ids
            assert alone.log_prob == pytest.approx(whole[n].log_prob, abs=1e-4)
        assert engine.generate([], 6) == []

    def test_labels_have_the_models_log_probabilities(self, folder: Callable[[str], Path]) -> None:
        engine, _ = ct2.open_engine(folder("v1_0"), threads=1)
        rows = inputs(5)
        labels = [[[7], [7, 8], [9, 9, 9]], [[5]], [[6], [6, 7]], [[30], [31], [32]], [[2]]]
        found = engine.rank(rows, labels)
        model, tree = toy.T5(V1_0), random_weights(V1_0).tree()
        apply = jax.jit(lambda x, y: jax.nn.log_softmax(model.apply({"params": tree}, x, y)))
        for row, own, log_probs in zip(rows, labels, found, strict=True):
            assert log_probs.dtype == np.float32
            for label, log_prob in zip(own, log_probs, strict=True):
                x, y = np.zeros((1, 40), np.int32), np.zeros((1, 5), np.int32)
                x[0, : len(row)], y[0, 1 : 1 + len(label)] = row, label
                targets = [*label, EOS_ID]
                expected = np.asarray(apply(x, y))[0, np.arange(len(targets)), targets].sum()
                assert log_prob == pytest.approx(expected, abs=1e-4)

    def test_long_inputs_are_not_cut(self, folder: Callable[[str], Path]) -> None:
        engine, _ = ct2.open_engine(folder("v1_0"), threads=1)
        (long,) = inputs(1, longest=2)
        long = [*map(int, np.random.default_rng(0).integers(2, 426, 1200)), EOS_ID]
        cut = [*long[:1023], EOS_ID]
        whole, short = engine.rank([long, cut], [[[5]], [[5]]])
        assert whole != pytest.approx(short, abs=1e-3)

    def test_a_process_with_it_has_neither_jax_nor_tensorflow(
        self, folder: Callable[[str], Path]
    ) -> None:
        code = (
            "import sys; from dss_jax.student.load import load; student = load(sys.argv[1]); "
            "student.predict(['Tom has 3 apples']); student.complete(['x'], 4); "
            "print(*{'jax', 'flax', 'tensorflow', 'torch', 'seqio'} & set(sys.modules))"
        )
        run = [sys.executable, "-c", code, str(folder("v1_1"))]
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "\n"


class TestMistakes:
    def test_ctranslate2_is_not_installed(
        self, folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = folder("v1_0")
        monkeypatch.setitem(sys.modules, "ctranslate2", None)
        for asked in (
            lambda: ours.write_ct2(random_weights(BASE), tmp_path / "out"),
            lambda: ct2.open_engine(made),
        ):
            with pytest.raises(UsageError, match=r"pip install 'dss-jax\[ctranslate2\]'"):
                asked()
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", [ct2.TOKENS, "spiece.model", "t5_config.json"])
    def test_a_file_is_missing(
        self, name: str, folder: Callable[[str], Path], tmp_path: Path
    ) -> None:
        made = _copy(folder("v1_0"), tmp_path / "copy")
        (made / name).unlink()
        with pytest.raises(UsageError, match=f"lacks {name}"):
            ct2.open_engine(made)

    def test_a_file_is_damaged(self, folder: Callable[[str], Path], tmp_path: Path) -> None:
        made = _copy(folder("v1_0"), tmp_path / "copy")
        model = made / "model.bin"
        model.write_bytes(model.read_bytes()[:-1000])
        with pytest.raises(UsageError, match=r"copy cannot be read by CTranslate2"):
            ct2.open_engine(made)
        made = _copy(folder("v1_0"), tmp_path / "other")
        names = json.loads((made / ct2.TOKENS).read_text())
        (made / ct2.TOKENS).write_text(json.dumps([*names[:-1], names[5]]))
        with pytest.raises(UsageError, match="447 different tokens for 448 rows"):
            ct2.open_engine(made)

    def test_a_bit_is_flipped(self, folder: Callable[[str], Path], tmp_path: Path) -> None:
        """CTranslate2 does not notice."""
        made = _copy(folder("v1_0"), tmp_path / "copy")
        model = made / "model.bin"
        content = bytearray(model.read_bytes())
        content[-100] ^= 64
        model.write_bytes(content)
        with pytest.raises(UsageError, match=r"copy is damaged: model.bin is not what was written"):
            ct2.open_engine(made)

    def test_the_vocabulary_is_another_students(
        self, folder: Callable[[str], Path], tmp_path: Path
    ) -> None:
        made = _copy(folder("v1_0"), tmp_path / "copy")
        shape = made / "t5_config.json"
        shape.write_text(shape.read_text().replace('"extra_ids": 10', '"extra_ids": 9'))
        with pytest.raises(UsageError, match=r"spiece.model has 425 ids, and .* names 426"):
            ct2.open_engine(made)

    def test_there_is_no_checkpoint_to_choose(self, folder: Callable[[str], Path]) -> None:
        with pytest.raises(UsageError, match="no checkpoint to choose"):
            ct2.open_engine(folder("v1_0"), checkpoint="best")


def _copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    student_maker.make_student(folder, student_maker.make_store(folder.parent / "store"))
    return folder


CONVERT = ("convert", "--to", "ctranslate2")


def test_a_runs_student_becomes_one_for_cpus(run: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "student")
    examples = student_maker.examples(12)
    rows = tmp_path / "rows.jsonl"
    given = [{"input": one.input, "label": one.label} for one in examples]
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert main([*CONVERT, out, "--from", "orbax", str(run), "--compare_on", str(rows)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"written {out} (float32)" in said
    assert "compared with ours log-probabilities of" in said
    assert "rows 12 the same label 12 text_accuracy, %, before" in said
    assert "of the same labels, difference 0.00" in said
    for name in ("student.json", "spiece.model", "t5_config.json"):
        assert Path(out, name).read_bytes() == (run / name).read_bytes()
    assert "library_name: ctranslate2" in Path(out, "README.md").read_text()
    before, after = load(run), load(out)
    assert (before.engine, after.engine) == ("jax", "ctranslate2")
    asked = {"labels": [one.allowed_labels for one in examples], "explain": True}
    texts = [one.input for one in examples]
    for one, other in zip(
        before.predict(texts, **asked), after.predict(texts, **asked), strict=True
    ):
        assert (one.label, one.rationale) == (other.label, other.rationale)
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-3)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_a_model_card_goes_with_a_folder_that_is_converted_again(
    run: Path, tmp_path: Path, capsys
) -> None:
    hf, out = tmp_path / "hf", tmp_path / "ct2"
    assert main(["convert", "--from", "orbax", str(run), "--to", "hf", str(hf)]) == 0
    asked = [*CONVERT, str(out), "--from", "hf", str(hf)]
    before = (hf / "README.md").read_text()
    (hf / "README.md").write_text("---\n: [\n---\n")
    assert main(asked) == 2
    assert f"{hf}/README.md begins with YAML that cannot be read" in capsys.readouterr().err
    (hf / "README.md").write_text(before)
    assert main(asked) == 0
    after = (out / "README.md").read_text()
    assert "library_name: transformers" in before
    assert "library_name: ctranslate2" in after
    _, own, body = before.split("---\n", 2)
    assert body.rstrip() in after, own
    assert "ctranslate2, float32. What is above was said before." in after


@pytest.mark.slow
def test_int8_says_what_it_costs(run: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "student")
    assert main([*CONVERT, out, "--from", "orbax", str(run), "--quantization", "int8"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    # Of the examples of the student's card.
    for part in ("(int8)", "rows 20", "text_accuracy, %, before", "text_accuracy, %, after"):
        assert part in said
    assert "in float32; here they are int8" in Path(out, "README.md").read_text()


def test_mistakes_on_the_command_line(run: Path, tmp_path: Path, capsys) -> None:
    bad = tmp_path / "rows.jsonl"
    bad.write_text('{"input": "x", "label": "y"}\n{"text": "x"}\n')
    new = str(tmp_path / "new")
    wrong = [
        (["ctranslate2", new, "--quantization", "int4"], "Did you mean 'int8'?"),
        (["hf", new, "--quantization", "int8"], "for --to ctranslate2"),
        (["ctranslate2", new, "--dtype", "bfloat16"], "--dtype is for --to hf"),
        (["ctranslate2", new, "--compare_on", str(bad)], "rows.jsonl, line 2 has no input"),
        (["ctranslate2", new, "--compare_on", "nowhere"], "nowhere"),
        (["ctranslate", new], "Did you mean 'ctranslate2'?"),
    ]
    for arguments, says in wrong:
        assert main(["convert", "--from", "orbax", str(run), "--to", *arguments]) == 2, arguments
        assert says in capsys.readouterr().err
        assert not Path(new).exists()


def test_a_card_whose_examples_have_no_labels_is_converted(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    card = json.loads((copy / "student.json").read_text())
    card["examples"] = [{"input": one["input"]} for one in card["examples"]]
    (copy / "student.json").write_text(json.dumps(card))
    assert main([*CONVERT, str(tmp_path / "student"), "--from", "orbax", str(copy)]) == 0
    assert load(tmp_path / "student").card.examples[0]["label"] == ""
