"""Registered SeqIO tasks, vocabulary parity, TFDS order, and stores made from them.

The one test file that imports TensorFlow into the test process.
"""

import csv
import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from test_rationales import record

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.prefixes import PREFIXES
from dss_jax.core.registry import load_task
from dss_jax.core.types import Example, SeqioSource, plain_example
from dss_jax.data import prepare
from dss_jax.data.rationales import join_records
from dss_jax.data.rows import examples
from dss_jax.data.store import TEXT_COLUMNS, TokenStore, open_store
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.layouts.health import health_line
from dss_jax.records.files import write_records
from dss_jax.records.records import Header

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "tests" / "fixtures" / "release"
MODEL = ROOT / "tasks" / "vocabularies" / "word_problems.model"
SHARED = ROOT.parent / "shared" / "data"
T5_MODEL = SHARED / "vocab" / "t5_sentencepiece_32000.model"
EXTRA_IDS = 10
SETTINGS: dict[str, Any] = {"vocabulary_path": MODEL, "extra_ids": EXTRA_IDS, "data_dir": RELEASE}
"""Of `register`."""


@pytest.fixture(scope="module")
def seqio() -> Any:
    return pytest.importorskip("seqio")


@pytest.fixture
def register(seqio: Any) -> Any:
    from dss_jax.data import seqio_tasks

    def call(name: str, **settings: Any) -> dict[str, Any]:
        return seqio_tasks.register(load_task(name), **SETTINGS | settings)

    return call


def rows_of(seqio: Any, name: str, split: str, **kwargs: Any) -> list[dict[str, Any]]:
    kwargs = {"sequence_length": None, "shuffle": False, **kwargs}
    dataset = seqio.get_mixture_or_task(name).get_dataset(split=split, **kwargs)
    return list(dataset.as_numpy_iterator())


class TestPairs:
    """What `dss_jax.data.seqio_pairs` gives T5X."""

    LENGTHS = {"inputs": 24, "targets": 12}

    @pytest.fixture
    def pairs(self, seqio: Any) -> Any:
        from dss_jax.data import seqio_pairs, seqio_tasks

        def call(name: str) -> Any:
            seqio_tasks.register(load_task(name), **SETTINGS)
            return seqio_pairs

        return call

    def batch(self, seqio: Any, name: str, converter: Any, size: int) -> dict[str, np.ndarray]:
        dataset = seqio.get_dataset(
            mixture_or_task_name=name,
            task_feature_lengths=self.LENGTHS,
            dataset_split="train",
            feature_converter=converter,
            shuffle=False,
            batch_size=size,
        )
        return next(dataset.as_numpy_iterator())

    def test_a_batch_holds_each_example_in_both_roles(
        self, seqio: Any, pairs: Any, register: Any
    ) -> None:
        module = pairs("svamp")
        register("svamp")
        converter = module.PairedFeatureConverter(alpha=0.25, pack=False)
        found = self.batch(seqio, "svamp_paired", converter, 6)
        singles = {
            suffix: {
                row["row"]: row
                for row in rows_of(seqio, f"svamp_{suffix}", "train", sequence_length=self.LENGTHS)
            }
            for suffix in ("label", "rationale")
        }
        numbers = list(singles["label"])[:3]
        for row in range(6):
            # One example after the other, label first.
            suffix, weight, role = (("label", 0.25, 1), ("rationale", 0.75, 2))[row % 2]
            expected = singles[suffix].get(numbers[row // 2], {"targets": []})
            targets = found["decoder_target_tokens"][row]
            real = targets != 0
            np.testing.assert_array_equal(targets[real], expected["targets"])
            np.testing.assert_array_equal(found["decoder_roles"][row], role * real)
            np.testing.assert_allclose(found["decoder_loss_weights"][row], weight * real)
            np.testing.assert_array_equal(found["decoder_input_tokens"][row][1:], targets[:-1])
            inputs = found["encoder_input_tokens"][row]
            if real.any():
                np.testing.assert_array_equal(inputs[inputs != 0], expected["inputs"])
        assert found["decoder_loss_weights"].dtype == np.float32
        # Some were cut, and those end in end-of-sequence.
        assert 1 in found["decoder_target_tokens"][:, -1]

    def test_a_row_without_a_rationale_stays(self, seqio: Any, pairs: Any) -> None:
        module = pairs("svamp")
        found = examples(load_task("svamp"), "train", RELEASE)
        assert not all(e.rationale for e in found)
        rows = rows_of(seqio, "svamp_paired", "train")
        assert [r["row"] for r in rows] == [i for i, e in enumerate(found) if e.label]
        for row in rows:
            assert (len(row["rationale_targets"]) > 0) == bool(found[row["row"]].rationale)
        assert module.paired("svamp") == "svamp_paired"
        assert module.paired("svamp_unlabeled") == "svamp_unlabeled_paired"
        assert module.paired("svamp_label") == "svamp_label"

    def test_white_space_is_a_target_as_in_the_store(
        self, seqio: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dss_jax.data import rows

        found = [
            Example(id=str(i), input="x", label=label, rationale=rationale)
            for i, (label, rationale) in enumerate([("1", " "), (" ", "2"), ("3", "")])
        ]
        monkeypatch.setattr(rows, "examples", lambda *_: found)
        pairs("svamp")
        features = ("targets", "rationale_targets")
        made = [[r[f].tolist() for f in features] for r in rows_of(seqio, "svamp_paired", "train")]
        assert [row[0] for row in made] == [made[0][0], [1], made[2][0]]
        assert [row[1] for row in made] == [[1], made[1][1], []]

    @pytest.mark.parametrize("pack", [False, True])
    def test_other_tasks_weigh_each_token_alike(
        self, seqio: Any, pairs: Any, register: Any, pack: bool
    ) -> None:
        module = pairs("svamp")
        register("svamp")
        converter = module.PairedFeatureConverter(alpha=0.25, pack=pack)
        found = self.batch(seqio, "svamp_label", converter, 2)
        real = found["decoder_target_tokens"] != 0
        np.testing.assert_array_equal(found["decoder_loss_weights"], real.astype(np.float32))
        np.testing.assert_array_equal(found["decoder_roles"], real.astype(np.int32))
        assert ("decoder_segment_ids" in found) is pack

    def test_pairs_are_not_packed_and_alpha_is_a_share(self, seqio: Any, pairs: Any) -> None:
        module = pairs("svamp")
        with pytest.raises(UsageError, match="cannot be packed"):
            self.batch(seqio, "svamp_paired", module.PairedFeatureConverter(pack=True), 2)
        with pytest.raises(UsageError, match=r"between 0 and 1, not 1\.5"):
            module.PairedFeatureConverter(alpha=1.5)


class TestRegistered:
    @pytest.mark.parametrize("style", ["paper", "released_code"])
    def test_prefixes_tokens_and_rows(self, seqio: Any, register: Any, style: str) -> None:
        register("cqa", prefixes=style)
        vocabulary = SentencePiece(MODEL, EXTRA_IDS)
        found = examples(load_task("cqa"), "test", RELEASE)
        for suffix, field in (("label", "label"), ("rationale", "rationale")):
            rows = rows_of(seqio, f"cqa_{suffix}", "test")
            assert [r["row"] for r in rows] == list(range(len(found)))
            prefix = getattr(PREFIXES[style], suffix)
            for row, example in zip(rows, found, strict=True):
                assert row["inputs_pretokenized"].decode() == prefix + example.input
                assert row["inputs"].tolist() == toy.input_ids(vocabulary, prefix + example.input)
                target = getattr(example, field)
                assert row["targets"].tolist() == [*vocabulary.encode(target), 1]

    def test_rows_without_a_target_are_left_out(self, seqio: Any, register: Any) -> None:
        register("cqa")
        found = [e for s in ("train", "validation") for e in examples(load_task("cqa"), s, RELEASE)]
        lacking = sum(not e.teacher_label for e in found)
        assert lacking == 1
        rows = [r for s in ("train", "validation") for r in rows_of(seqio, "cqa_teacher_label", s)]
        assert len(rows) == len(found) - lacking
        assert all(len(r["targets"]) > 1 for r in rows)

    def test_records_take_the_place_of_the_teacher_text(
        self, seqio: Any, register: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task, file = load_task("cqa"), tmp_path / "records.jsonl"
        found = {s: examples(task, s, RELEASE) for s in ("train", "validation", "test")}
        records = [record(e) for s in ("train", "validation") for e in found[s][1:]]
        write_records(file, Header(task="cqa", split="train", teacher="t"), records)
        joined, _ = join_records(task, found, [file], RELEASE)
        register("cqa", rationales=[file])
        for split in found:
            kept = [e for e in joined[split] if e.rationale]
            for suffix in ("teacher_label", "rationale"):
                rows = rows_of(seqio, f"cqa_{suffix}", split)
                targets = [r["targets_pretokenized"].decode() for r in rows]
                assert targets == [getattr(e, suffix) for e in kept]
        monkeypatch.setenv("DSS_DATA_DIR", str(RELEASE))
        monkeypatch.setenv("DSS_VOCABULARY", str(MODEL))
        monkeypatch.setenv("DSS_RATIONALES", str(file))
        seqio_register = importlib.import_module("dss_jax.data.seqio_register")
        seqio_register.register_all()
        assert len(rows_of(seqio, "word_problems_rationale", "test")) == 400
        assert len(rows_of(seqio, "cqa_rationale", "train")) == len(found["train"]) - 1

    def test_mixtures_hold_both_tasks(self, seqio: Any, register: Any) -> None:
        register("svamp")
        for name, label in (("svamp", "svamp_label"), ("svamp_unlabeled", "svamp_teacher_label")):
            mixture = seqio.get_mixture_or_task(name)
            assert {t.name for t in mixture.tasks} == {label, "svamp_rationale"}
        once = {"shuffle": True, "num_epochs": 1}
        lengths = {"inputs": 256, "targets": 128}
        mixed = rows_of(seqio, "svamp", "test", sequence_length=lengths, **once)
        assert 5 <= len(mixed) <= 12

    def test_long_rows_are_cut_with_eos(self, seqio: Any, register: Any) -> None:
        register("cqa")
        rows = rows_of(seqio, "cqa_rationale", "test", sequence_length={"inputs": 9, "targets": 5})
        assert {len(r["inputs"]) for r in rows} == {9}
        assert all(r["inputs"][-1] == 1 and r["targets"][-1] == 1 for r in rows)

    def test_metrics_and_postprocessors(self, seqio: Any, register: Any) -> None:
        tasks = register("svamp")
        assert tasks["label"].postprocess_fn(" (1 + 2) ", example={}, is_target=True) == "(1 + 2)"
        (metric,) = tasks["label"].metric_fns
        assert metric(["( 1.0 + 2.0 )", "2"], ["3", "3"]) == {"equation_accuracy": 50.0}
        assert not tasks["rationale"].metric_fns

    def test_separator_becomes_the_eos_id(
        self, seqio: Any, register: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dss_jax.data import seqio_tasks

        inputs = ("A man</s>A dog", "</s>b</s></s>")
        found = [Example(id=i, input=i, label="neutral") for i in inputs]
        monkeypatch.setattr(seqio_tasks, "_reader", lambda *_: (lambda split: found, ("train",)))
        register("esnli")
        vocabulary = SentencePiece(MODEL, EXTRA_IDS)
        first, second = rows_of(seqio, "esnli_label", "train")
        prefix = vocabulary.encode("[label] ")
        man = vocabulary.encode("[label] A man")
        assert first["inputs"].tolist() == [*man, 1, *vocabulary.encode("A dog"), 1]
        assert second["inputs"].tolist() == [*prefix, 1, *vocabulary.encode("b"), 1, 1, 1]

    def test_no_data_is_explained_when_it_is_asked_for(
        self, register: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DSS_DATA_DIR", raising=False)
        tasks = register("cqa", data_dir=None)
        with pytest.raises(UsageError, match=r"--data_dir"):
            tasks["label"].get_dataset(sequence_length=None, split="train")

    def test_the_register_module_takes_settings_from_the_environment(
        self, seqio: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DSS_DATA_DIR", str(RELEASE))
        monkeypatch.setenv("DSS_VOCABULARY", str(MODEL))
        monkeypatch.setenv("DSS_EXTRA_IDS", "0")
        monkeypatch.setenv("DSS_PREFIXES", "released_code")
        from dss_jax.data import seqio_register

        assert {"cqa", "svamp", "esnli", "anli1"} <= set(seqio_register.register_all())
        (row, *_) = rows_of(seqio, "anli1_label", "validation")
        assert row["inputs_pretokenized"].startswith(b"predict: A woman")
        assert 1 in row["inputs"][:-1]


class TestVocabulary:
    @pytest.mark.parametrize("extra_ids", [0, 100])
    @pytest.mark.parametrize("model", [MODEL, T5_MODEL], ids=["own", "t5"])
    def test_it_is_seqios(self, seqio: Any, model: Path, extra_ids: int) -> None:
        if not model.is_file():
            pytest.skip(f"{model} is not there")
        theirs = seqio.SentencePieceVocabulary(str(model), extra_ids)
        ours = SentencePiece(model, extra_ids)
        assert ours.vocab_size == theirs.vocab_size
        texts = ["How many?", " two  spaces ", "<extra_id_0> and <extra_id_1>", "½ ﬁ ü 中", ""]
        assert [ours.encode(t) for t in texts] == [theirs.encode(t) for t in texts]
        draw = np.random.default_rng(0)
        for _ in range(300):
            ids = draw.integers(0, ours.vocab_size + 30, 12).tolist()
            assert ours.decode(ids) == theirs.decode(ids)
            without_end = [i for i in ids if i != 1]
            assert ours.decode(np.array(without_end)) == theirs.decode(without_end)


class TestTfds:
    def test_rows_come_in_the_order_of_the_files(
        self, seqio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TFDS shuffles by key; completions are joined by position, so that would be wrong."""
        from dss_jax.data import seqio_sources

        tfds = seqio_sources.tfds
        file = tmp_path / "esnli.csv"
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["pairID", "gold_label", "Sentence1", "Sentence2", "Explanation_1"])
            labels = ("entailment", "neutral", "contradiction")
            writer.writerows([f"p{i}", labels[i % 3], f"s {i}", "h", ""] for i in range(60))
        files = {"train": [str(file)], "validation": [str(file)], "test": [str(file)]}
        monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda *_: files)
        monkeypatch.setattr(seqio_sources, "_check_reachable", lambda _: None)
        monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "cache"))
        source = load_task("esnli").sources[1]
        rows = seqio_sources.tfds_rows(source, "train", in_order=True)
        assert [r["premise"] for r in rows] == [f"s {i}" for i in range(60)]
        assert [r["label"] for r in rows] == [i % 3 for i in range(60)]
        # Joined with completions that lie in the release folder, none for the other splits.
        folder = tmp_path / "release" / "esnli" / "llm"
        folder.mkdir(parents=True)
        texts = [f'"r {i}\\nAnswer: neutral\\n\\nPremise: x"' for i in range(60)]
        (folder / "train_CoT_0.json").write_text(f"[{','.join(texts)}]")
        joined = examples(load_task("esnli"), "train", tmp_path / "release")
        assert [(e.input, e.rationale) for e in joined] == [
            (f"s {i}</s>h", f"r {i}") for i in range(60)
        ]
        # Too few completions are the user's to put right, not a split that cannot be had.
        (folder / "train_CoT_0.json").write_text(f"[{','.join(texts[1:])}]")
        task = config.Task(name="esnli", data_dir=str(tmp_path / "release"))
        with pytest.raises(UsageError, match="has 60 rows, but there are 59 completions"):
            make_store(tmp_path, task)

    def test_a_data_set_that_cannot_be_had_is_explained(
        self, seqio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dss_jax.data import seqio_sources

        def unreachable(_: object) -> None:
            raise OSError("no network in tests")

        monkeypatch.setattr(seqio_sources, "_check_reachable", unreachable)
        monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path))
        store = make_store(tmp_path, config.Task(name="anli1", data_dir=str(RELEASE)))
        assert store.splits == ("validation",)
        with pytest.raises(UsageError, match=r"no 'train' split.*no network in tests"):
            store.split("train")
        source = load_task("anli1").sources[1]
        with pytest.raises(UsageError, match=r"anli/r1.*no network in tests.*--data_dir"):
            seqio_sources.tfds_rows(source, "train", in_order=True)

    def test_any_seqio_source_can_be_a_tasks(self, seqio: Any, tmp_path: Path) -> None:
        import tensorflow as tf

        (tmp_path / "a.txt").write_text("one\ntwo\n")

        def make() -> Any:
            def lines(split: str, shuffle_files: bool) -> Any:
                del split, shuffle_files
                return tf.data.TextLineDataset(str(tmp_path / "a.txt")).map(
                    lambda line: {"input": line}
                )

            return seqio.FunctionDataSource(lines, splits=["train"])

        sources = (SeqioSource(make=make, splits=("train",)),)
        task = dataclasses.replace(load_task("esnli"), sources=sources, to_example=plain_example)
        assert [e.input for e in examples(task, "train")] == ["one", "two"]


def make_store(tmp_path: Path, task: config.Task, model: Path = MODEL) -> TokenStore:
    """What the child process does, in this process."""
    from dss_jax.data import seqio_prepare

    vocabulary = config.Vocabulary(path=str(model), extra_ids=EXTRA_IDS)
    request = {**prepare.make_request(task, vocabulary), "path": str(tmp_path / "store")}
    seqio_prepare.make(request)
    return open_store(tmp_path / "store")


class TestStore:
    @pytest.mark.parametrize(("name", "split"), [("cqa", "train"), ("svamp", "test")])
    def test_tokens_are_those_of_plain_seqio(
        self, seqio: Any, register: Any, tmp_path: Path, name: str, split: str
    ) -> None:
        store = make_store(tmp_path, config.Task(name=name, data_dir=str(RELEASE)))
        register(name)
        found = examples(load_task(name), split, RELEASE)
        stored = store.split(split)
        assert len(stored) == len(found)
        for column in set(TEXT_COLUMNS) - {"allowed_labels"}:
            assert stored.text(column)[:] == [getattr(e, column) for e in found]
        allowed = [tuple(json.loads(text)) for text in stored.text("allowed_labels")[:]]
        assert allowed == [e.allowed_labels for e in found]
        for suffix in ("label", "teacher_label", "rationale"):
            inputs = "rationale_inputs" if suffix == "rationale" else "label_inputs"
            rows = {int(r["row"]): r for r in rows_of(seqio, f"{name}_{suffix}", split)}
            assert rows
            for row in range(len(found)):
                targets = stored.tokens(f"{suffix}_targets")[row].tolist()
                assert targets == (rows[row]["targets"].tolist() if row in rows else [])
                if row in rows:
                    assert stored.tokens(inputs)[row].tolist() == rows[row]["inputs"].tolist()
                # A row without a target can still be predicted.
                assert len(stored.tokens(inputs)[row]) > 1

    def test_a_source_that_changes_meanwhile_is_noticed(
        self, seqio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prepare, "key_of", lambda content: str(id(content)))
        with pytest.raises(UsageError, match=r"changed while its token store was made"):
            make_store(tmp_path, config.Task(name="svamp", data_dir=str(RELEASE)))
        assert not (tmp_path / "store").exists()

    def test_a_changed_file_of_a_seqio_source_makes_it_anew(
        self, seqio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The key does not cover what only SeqIO knows: the manifest does."""
        (tmp_path / "lines.txt").write_text("one\ntwo\n")
        (tmp_path / "lines.py").write_text(OF_SEQIO.format(folder=tmp_path))
        monkeypatch.setenv("DSS_TASK_PATH", str(tmp_path))
        store = make_store(tmp_path, config.Task(name="lines"))
        assert store.split("train").text("input")[:] == ["one", "two"]
        assert prepare._look(store.path, ())[0] is not None
        (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
        again, why = prepare._look(store.path, ())
        assert again is None
        assert re.search(r"lines.txt has changed since .* It is made again", why)

    def test_a_users_own_mixture(
        self, seqio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "lines.tsv").write_text("q one\ta\nq two\tb\nq three\tc\n")
        (tmp_path / "my_own_tasks.py").write_text(OWN.format(folder=tmp_path, model=MODEL))
        monkeypatch.chdir(tmp_path)
        task = config.Task(mixture_or_task_name="my_mix", mixture_or_task_module="my_own_tasks")
        monkeypatch.setattr(sys, "path", [*sys.path])
        store = make_store(tmp_path, task)
        train = store.split("train")
        assert store.splits == ("train",)
        assert store.extra_ids == 7
        assert train.text("input")[:] == ["q one", "q two", "q three"] * 2
        assert train.text("label")[:] == ["a", "b", "c"] * 2
        assert train.text("id")[3] == "my_second-0"
        vocabulary = SentencePiece(MODEL, 7)
        assert train.tokens("label_inputs")[1].tolist() == [*vocabulary.encode("q two"), 1]
        assert list(store.manifest["source_files"]) == [str(tmp_path / "lines.tsv")]
        assert "6 rows, 6 with a label, 0 cut" in health_line(store, "train", config.Data())

        wrong = config.Task(mixture_or_task_name="my_mx", mixture_or_task_module="my_own_tasks")
        with pytest.raises(UsageError, match=r"no SeqIO task or mixture 'my_mx'. It has: .*my_mix"):
            make_store(tmp_path, wrong)
        wrong = config.Task(mixture_or_task_name="my_mix", mixture_or_task_module="my_own_tsks")
        with pytest.raises(UsageError, match=r"'my_own_tsks' cannot be imported.*PYTHONPATH"):
            make_store(tmp_path, wrong)


OWN = """
import seqio
import tensorflow as tf


def split_tabs(dataset):
    def one(row):
        parts = tf.strings.split(row, "\\t")
        return {{"inputs": parts[0], "targets": parts[1]}}
    return dataset.map(one)


vocabulary = seqio.SentencePieceVocabulary("{model}", extra_ids=7)
for name in ("my_first", "my_second"):
    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource({{"train": "{folder}/lines.tsv"}}),
        preprocessors=[split_tabs, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={{n: seqio.Feature(vocabulary) for n in ("inputs", "targets")}},
        metric_fns=[],
    )
seqio.MixtureRegistry.add("my_mix", ["my_first", "my_second"], default_rate=1.0)
"""


OF_SEQIO = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, SeqioSource


def make():
    import seqio
    import tensorflow as tf

    def of_line(line):
        return {{"line": line}}

    class Lines(seqio.TextLineDataSource):
        def get_dataset(self, *args, **kwargs):
            return super().get_dataset(*args, **kwargs).map(of_line)

    return Lines({{"train": "{folder}/lines.txt"}})


TASK = DistillationTask(
    name="lines", description="d", licence="l",
    sources=(SeqioSource(make=make, splits=("train",)),),
    to_example=lambda row, _: Example(id="", input=row["line"]), scorer=TEXT_ACCURACY,
)
"""


class TestForms:
    """Joint targets and PINTO's inputs, put together from columns, are SeqIO's of the joined
    text.
    """

    CASES = (
        ("single_task", "rationale_label"),
        ("single_task_label_first", "label_rationale"),
        ("pinto", "rationale_input"),
    )

    @pytest.mark.parametrize("name", ["cqa", "esnli"])
    def test_tokens_are_seqios(self, seqio: Any, register: Any, tmp_path: Path, name: str) -> None:
        from dss_jax.data.views import examples_of

        model, extra_ids = (T5_MODEL, 100) if T5_MODEL.is_file() else (MODEL, EXTRA_IDS)
        register(name, vocabulary_path=model, extra_ids=extra_ids)
        store = prepare.ensure_store(
            config.Task(name=name, data_dir=str(RELEASE)),
            config.Vocabulary(path=str(model), extra_ids=extra_ids),
            config.Data(store_dir=str(tmp_path)),
        )
        split = "validation" if name == "esnli" else "train"
        for suffix, form in self.CASES:
            method = config.Method(name=suffix, form=form, rationale=False)
            examples = examples_of(store.split(split), config.Data(), method)
            found = rows_of(seqio, f"{name}_{suffix}", split)
            assert found
            for row in found:
                item = np.array([row["row"]])
                np.testing.assert_array_equal(examples.inputs(item), row["inputs"])
                np.testing.assert_array_equal(examples.targets(item), row["targets"])

    def test_the_label_is_scored(self, seqio: Any, register: Any) -> None:
        tasks = register("svamp")
        text = "So 8 + 5. Answer: ( 8 + 5 )"
        assert tasks["single_task"].postprocess_fn(text) == "( 8 + 5 )"
        assert tasks["single_task_label_first"].postprocess_fn("( 1 ) Rationale: so") == "( 1 )"

    def test_span_corruption_is_a_seqio_task(self, seqio: Any, register: Any) -> None:
        register("cqa")
        lengths = {"inputs": 40, "targets": 20}
        kwargs = {"sequence_length": lengths, "shuffle": False}
        task = seqio.get_mixture_or_task("cqa_pretrain")
        first, again, other = (
            [
                {k: v.tolist() for k, v in row.items()}
                for row in task.get_dataset(split="train", seed=s, **kwargs).as_numpy_iterator()
            ]
            for s in (0, 0, 1)
        )
        assert first == again
        assert first != other
        vocabulary = SentencePiece(MODEL, EXTRA_IDS)
        for row in first:
            for feature, ids in row.items():
                assert len(ids) == len(first[0][feature])
            assert row["inputs"][-1] == row["targets"][-1] == 1
            assert row["targets"][0] == vocabulary.vocab_size - 1
