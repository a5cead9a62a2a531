"""A folder that one can hand over: its tokenizer, its lengths and prefixes, its card, its files."""

import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import student_maker
import toy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from t5_weights import BASE, random_weights

from dss_jax.cli.main import main
from dss_jax.core import student_card
from dss_jax.core.errors import UsageError
from dss_jax.core.student_card import StudentCard
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.interop.formats import read_weights
from dss_jax.interop.hf import write_hf
from dss_jax.interop.hf_config import config_json, generation_json
from dss_jax.interop.pieces import read_model, token_names
from dss_jax.interop.tokenizer_json import tokenizer_json
from dss_jax.run import model_card, run_folder

SHARED = Path(__file__).parents[2] / "shared" / "data" / "vocab" / "t5_sentencepiece_32000.model"

plain = st.characters(
    codec="utf-8", exclude_categories=["Cs", "Mn", "Mc", "Me"], exclude_characters="<▁"
)
"""Without marks that join the character before: `tokenizers` rewrites the two as one."""


@pytest.fixture(scope="module", params=["word_problems", "t5"])
def both(request: pytest.FixtureRequest) -> tuple[Any, SentencePiece]:
    """The tokenizer of `tokenizer.json`, and SentencePiece."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs pip install tokenizers")
    vocabulary = {"word_problems": toy.VOCABULARY, "t5": SHARED}[request.param]
    if not vocabulary.is_file():
        pytest.skip("../shared has no T5 vocabulary")
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(vocabulary, 100)))

    class Quiet:
        """Shown without its vocabulary where a test fails."""

        def __getattr__(self, name: str) -> Any:
            return getattr(made, name)

    return Quiet(), SentencePiece(vocabulary, 100)


class TestTokenizer:
    @settings(max_examples=150, deadline=None)
    @given(st.text(plain, max_size=60))
    @example("")
    @example("  leading,  double and trailing ")
    @example("\x85")
    @example("tabs\tand\nnew\r\nlines\u00a0\u2003\u3000x")
    @example("ﬁ ½ ① 日本語 \x00\x0b\x1c\x85\u2028\u200b")
    def test_ids_are_sentencepieces(self, both: tuple[Any, SentencePiece], text: str) -> None:
        made, own = both
        assert made.encode(text).ids == [*own.encode(text), 1]

    def test_real_texts(self, both: tuple[Any, SentencePiece]) -> None:
        made, own = both
        texts = (Path(__file__).parents[1] / "docs" / "data.md").read_text().splitlines()
        texts += [
            json.dumps(row, ensure_ascii=False)
            for file in sorted((Path(__file__).parent / "fixtures" / "release").rglob("*.json"))
            for row in file.read_text().splitlines()
        ]
        texts = [text for text in texts if "<" not in text]
        assert len(texts) > 150
        for text in texts:
            ids = [*own.encode(text), 1]
            assert made.encode(text).ids == ids
            assert made.decode(ids) == own.decode(ids) or 2 in ids

    def test_special_tokens_and_sentinels(self, both: tuple[Any, SentencePiece]) -> None:
        made, own = both
        assert made.get_vocab_size() == own.vocab_size
        for text in ("a <extra_id_0> b <extra_id_99>", "<extra_id_42>", "x </s> y"):
            assert made.encode(text).ids == toy.input_ids(own, text)
        assert made.token_to_id("<extra_id_0>") == own.vocab_size - 1
        assert [made.id_to_token(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
        assert made.encode("a", "b").ids == [*own.encode("a"), 1, *own.encode("b"), 1]

    @pytest.mark.parametrize(
        ("part", "field", "value"),
        [
            ("trainer_spec", "model_type", 2),  # BPE, whose merges are not in the file.
            ("trainer_spec", "treat_whitespace_as_suffix", True),
            ("normalizer_spec", "add_dummy_prefix", False),
            ("normalizer_spec", "remove_extra_whitespaces", False),
        ],
    )
    def test_a_vocabulary_of_another_kind_has_none(
        self, part: str, field: str, value: Any, tmp_path: Path, said: list[str]
    ) -> None:
        model = read_model(toy.VOCABULARY)
        setattr(getattr(model, part), field, value)
        file = tmp_path / "other.model"
        file.write_bytes(model.SerializeToString())
        assert tokenizer_json(file, 0) is None
        weights = dataclasses.replace(random_weights(BASE), vocabulary=file)
        write_hf(weights, tmp_path / "out")
        assert not (tmp_path / "out" / "tokenizer.json").exists()
        settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "T5Tokenizer"
        assert any("no tokenizer.json" in line for line in said)

    def test_what_is_no_vocabulary(self, tmp_path: Path) -> None:
        file = tmp_path / "no.model"
        file.write_bytes(b"\xff\xff no model")
        with pytest.raises(UsageError, match="cannot be read as a SentencePiece model"):
            tokenizer_json(file, 0)

    def test_a_piece_with_the_name_of_an_extra_id(self, tmp_path: Path) -> None:
        model = read_model(toy.VOCABULARY)
        model.pieces[100].piece = "<extra_id_3>"
        file = tmp_path / "odd.model"
        file.write_bytes(model.SerializeToString())
        with pytest.raises(UsageError, match=r"has a piece '<extra_id_3>'"):
            token_names(file, 100, 0)


CARD = StudentCard(
    task="cqa",
    method="dss",
    label_prefix="[label] ",
    rationale_prefix="[rationale] ",
    max_decode_length=64,
    max_rationale_length=200,
)


class TestLengthsAndPrefixes:
    def test_generate_goes_as_far_as_the_student(self) -> None:
        assert generation_json(BASE, CARD)["max_new_tokens"] == 200
        silent = dataclasses.replace(CARD, rationale_prefix=None)
        assert generation_json(BASE, silent)["max_new_tokens"] == 64
        joint = dataclasses.replace(silent, form="rationale_label")
        assert generation_json(BASE, joint)["max_new_tokens"] == 264
        assert "max_new_tokens" not in generation_json(BASE, None)

    def test_prefixes_are_where_t5_has_its_own(self) -> None:
        params = config_json(BASE, "float32", CARD)["task_specific_params"]
        assert params["label"] == {"prefix": "[label] ", "max_length": 64}
        assert params["rationale"] == {"prefix": "[rationale] ", "max_length": 200}
        assert params["text2text-generation"] == params["label"]
        assert "task_specific_params" not in config_json(BASE, "float32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with results."""
    folder = tmp_path_factory.mktemp("hand_over") / "seeds" / "seed_0"
    student_maker.make_student(folder, student_maker.make_store(folder.parents[1] / "store"))
    scores = {"text_accuracy": 70.0, "examples": 30, "teacher": 80.0}
    results = {
        "metric": "text_accuracy",
        "best_step": 1,
        "steps": 6,
        "seed": 0,
        "train_examples": 15,
        "train_total": 30,
        "validation": scores,
        "test": {**scores, "text_accuracy": 60.0},
    }
    run_folder.write_results(folder, results)
    return folder


@pytest.fixture(scope="module")
def student(run: Path) -> Path:
    """The run's student as a folder to hand over."""
    out, before = run.parents[1] / "student", os.umask(0o027)
    try:
        assert main(["convert", "--from", "orbax", str(run), "--to", "hf", str(out)]) == 0
    finally:
        os.umask(before)
    return out


class TestFolder:
    def test_what_is_in_it(self, student: Path, run: Path) -> None:
        names = {file.name for file in student.iterdir()}
        assert names == {
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "spiece.model",
            "student.json",
            "sums.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert student_card.read(student) == student_card.read(run)
        card = student_card.read(run)
        assert card is not None
        longest = max(card.max_decode_length, card.max_rationale_length)
        settings = json.loads((student / "generation_config.json").read_text())
        assert settings["max_new_tokens"] == longest

    def test_modes_are_those_of_the_umask(self, student: Path) -> None:
        assert stat.S_IMODE(student.stat().st_mode) == 0o750
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in student.iterdir()}
        assert modes == dict.fromkeys(modes, 0o640)

    def test_the_card_goes_where_the_parameters_go(self, student: Path, tmp_path: Path) -> None:
        orbax, again = tmp_path / "orbax", tmp_path / "again"
        assert main(["convert", "--from", "hf", str(student), "--to", "orbax", str(orbax)]) == 0
        assert main(["convert", "--from", "orbax", str(orbax), "--to", "hf", str(again)]) == 0
        assert (again / "student.json").read_bytes() == (student / "student.json").read_bytes()
        assert (again / "tokenizer.json").read_bytes() == (student / "tokenizer.json").read_bytes()

    def test_a_model_that_is_no_student_has_no_card(self, tmp_path: Path) -> None:
        write_hf(random_weights(BASE), tmp_path / "model")
        names = {file.name for file in (tmp_path / "model").iterdir()}
        assert not {"README.md", "student.json"} & names
        assert read_weights(str(tmp_path / "model")).card is None


class TestModelCard:
    def text(self, run: Path, step: int = 1, **changes: Any) -> str:
        card = student_card.read(run)
        assert card is not None
        card = dataclasses.replace(card, **changes)
        return model_card.of_run(run, card, 1_234_567, step, "hf")

    def test_it_says_what_the_run_says(self, run: Path) -> None:
        hub = pytest.importorskip("huggingface_hub")
        card = hub.ModelCard(self.text(run))
        assert card.data.library_name == "transformers"
        found = {one.dataset_split: one.metric_value for one in card.data.eval_results}
        assert found == {"validation": 70.0, "test": 60.0}
        text = card.text
        assert "1.2M parameters, trained from random parameters" in text
        assert "15 of 30 training examples (50 %)" in text
        assert "| test | 30 | 60.00 ± 8.94 | 80.00 |" in text
        assert "seed 0" in text
        assert "| label | `[label] ` | 5 |" in text
        assert "Optimizer.learning_rate = 0.01" in text
        assert "the text that comes with the data set" in text
        assert "terms of use" in text
        assert "# jax " in text
        assert str(run.parents[1]) not in text, "no path of this machine"

    def test_scores_are_those_of_the_checkpoint(self, run: Path) -> None:
        text = self.text(run, step=4)
        assert "the parameters after step 4 are here" in text
        assert "None: the run's own are of the parameters after step 1." in text
        assert "60.0" not in text

    def test_seeds_are_shown_together(self, run: Path) -> None:
        means = {s: {"text_accuracy": {"mean": 61.5, "standard_error": 1.25}} for s in ("test",)}
        file = run.parent / "seeds.json"
        file.write_text(json.dumps({"seeds": {"0": {}, "1": {}}, **means}))
        try:
            assert "| test | 2 | 61.50 ± 1.25 |" in self.text(run)
        finally:
            file.unlink()

    def test_where_it_started_and_who_taught_it(self, run: Path, tmp_path: Path) -> None:
        from dss_jax.records.files import write_records
        from dss_jax.records.records import Header

        records = tmp_path / "records.jsonl"
        header = Header(
            task="choices", split="train", teacher="big|model", terms="for <b>research</b> only"
        )
        write_records(records, header, [])
        base = "/cache/hub/models--google--flan-t5-small/snapshots/0fc9"
        changes = {"Task.record_files = ()": f"Task.record_files = ({str(records)!r},)"}
        changes["Train.init_from = None"] = f"Train.init_from = {base!r}"
        text = (run / run_folder.CONFIG).read_text()
        (tmp_path / "run").mkdir()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "run" / run_folder.CONFIG).write_text(text)
        card = student_card.read(run)
        assert card is not None
        shown = model_card.of_run(tmp_path / "run", card, 1, 1, "ctranslate2")
        assert "base_model: google/flan-t5-small\n" in shown
        assert "Teacher: `big|model` (terms: for &lt;b&gt;research&lt;/b&gt; only)." in shown
        assert "the run was not finished" in shown
        assert "/cache/hub" not in shown
        assert "library_name: ctranslate2" in shown
        assert "transformers" not in shown

    def test_what_others_wrote_is_text(self, run: Path) -> None:
        evil = "</script><img src=x onerror=alert(1)> [a](javascript:b)\n---\n# x ``` `` ` | y"
        rows = ({"input": evil, "label": evil},)
        text = self.text(run, description=evil, task=evil, labels=(evil, "`"), examples=rows)
        front, _, body = text.removeprefix("---\n").partition("\n---\n")
        import yaml

        assert yaml.safe_load(front)["model-index"][0]["name"].startswith(evil)
        # Without code there is no markup left, and no line begins with what was written.
        bare = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", body, flags=re.M | re.S)
        bare = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", bare)
        assert "<img" not in bare
        assert re.search(r"(?<!\\)\[a", bare) is None
        assert "\n---\n" not in body
        assert len(re.findall(r"^# ", bare, re.M)) == 1


@pytest.mark.slow
def test_transformers_alone_does_what_our_engine_does(
    student: Path, run: Path, tmp_path: Path
) -> None:
    """DSS_TEST_PYTHON names the Python of an environment that has no more than these."""
    python = os.environ.get("DSS_TEST_PYTHON")
    if python is None:
        pytest.importorskip("torch", reason="needs torch")
        pytest.importorskip("transformers", reason="needs transformers")
    from dss_jax.student.load import load

    ours = load(run)
    texts = [ours.card.label_prefix + one.input for one in student_maker.examples(6)]
    texts += ["[rationale] Tom\thas  12 apples ½ \x85", "a</s>b"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    script = Path(__file__).parent / "bare_transformers.py"
    command = [python or sys.executable, script, student, tmp_path / "texts.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = list(map(json.loads, done.stdout.splitlines()))
    assert [one["inputs"] for one in found] == ours.encode(texts)
    longest = max(ours.card.max_decode_length, ours.card.max_rationale_length)
    written = ours._engine.generate([one["inputs"] for one in found], longest)
    for one, own in zip(found, written, strict=True):
        assert one["ids"] == own.ids + [1] * own.ended
        assert one["log_prob"] == pytest.approx(own.log_prob, rel=5e-4, abs=1e-3)
    assert max(len(one["ids"]) for one in found) == longest


class TestPush:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
        constants = pytest.importorskip("huggingface_hub").constants
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # The stand-in has LFS only.
        with hub_server.running() as found:
            monkeypatch.setenv("HF_ENDPOINT", found.address)
            monkeypatch.setenv("HF_TOKEN", found.token)
            yield found

    def test_a_student_is_one_commit(
        self, hub: hub_server.Hub, student: Path, tmp_path: Path, capsys
    ) -> None:
        folder = shutil.copytree(student, tmp_path / "student")
        (folder / "notes.txt").write_text("a secret")
        (folder / ".env").write_text("a key")
        assert main(["push", str(folder), "me/student", "--private"]) == 0
        out = capsys.readouterr().out
        assert f"pushed to {hub.address}/me/student/commit/" in out
        assert "student.json there shows 20 rows" in out
        sent = hub.files["me/student"]
        assert sent == {file.name: file.read_bytes() for file in student.iterdir()}
        assert hub.private == {"me/student": True}
        assert hub.messages == ["Upload a student of dss-jax"]
        # Again, to the same repository.
        assert main(["push", str(folder), "me/student", "--message", "a better one"]) == 0
        assert hub.messages[1] == "a better one"

    def test_the_token_is_the_environments_and_is_not_shown(
        self,
        hub: hub_server.Hub,
        student: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level("DEBUG")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        before = {file: file.read_bytes() for file in student.rglob("*") if file.is_file()}
        assert main(["push", str(student), "me/student"]) == 2
        said = "".join(capsys.readouterr())
        assert f"cannot push to me/student at {hub.address}" in said
        assert "hf_wrong" not in said + caplog.text, "the hub repeats it in its error"
        assert before == {file: file.read_bytes() for file in student.rglob("*") if file.is_file()}
        monkeypatch.delenv("HF_TOKEN")
        asked = len(hub.asked)
        assert main(["push", str(student), "me/student"]) == 2
        assert "HF_TOKEN is not set" in capsys.readouterr().err
        assert len(hub.asked) == asked

    def test_what_cannot_be_pushed(
        self, hub: hub_server.Hub, student: Path, run: Path, capsys
    ) -> None:
        wrong = [
            ((run, "me/student"), "--to hf NEW_FOLDER"),
            ((student / "nowhere", "me/student"), "has no config.json"),
            ((student, "me/a b"), "cannot push to me/a b"),
        ]
        for (folder, repo), says in wrong:
            assert main(["push", str(folder), repo]) == 2
            assert says in capsys.readouterr().err
        assert not hub.files

    def test_there_is_no_hub(self, student: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        assert main(["push", str(student), "me/student"]) == 2
        assert "cannot push to me/student at http://127.0.0.1:9" in capsys.readouterr().err


def test_marks_are_where_tokenizers_differs() -> None:
    """What `plain` leaves out is what `docs/checkpoints.md` says."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs pip install tokenizers")
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(toy.VOCABULARY, 0)))
    text = "ﬁ\u0301"
    assert unicodedata.category(text[1]) == "Mn"
    assert made.encode(text).ids != [*SentencePiece(toy.VOCABULARY, 0).encode(text), 1]
