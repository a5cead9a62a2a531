"""Token stores by Apache Beam, and SeqIO's own cached tasks as a source; on the direct runner."""

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy

from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.data import prepare
from dss_jax.data.store import StoreSplit, TokenStore

TASK = """
import dataclasses

from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example


def to_example(row, completion):
    example = plain_example(row, completion)
    return dataclasses.replace(example, rationales=tuple(row.get("several", ())))


TASK = DistillationTask(
    name="lines", description="lines", licence="none",
    sources=(Jsonl(files={"train": "train.jsonl", "test": "test.jsonl"}),),
    to_example=to_example, scorer=TEXT_ACCURACY,
)
"""

OWN = """
import seqio
import tensorflow as tf


def split_tabs(dataset):
    def one(row):
        parts = tf.strings.split(row, "\\t")
        return {{"inputs": parts[0], "targets": parts[1]}}
    return dataset.map(one).filter(lambda row: row["targets"] != "drop")


vocabulary = seqio.SentencePieceVocabulary("{model}", extra_ids=7)
for name, cache in (("own_first", [seqio.CacheDatasetPlaceholder()]), ("own_second", [])):
    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource({{
            "train": ["{folder}/a.tsv", "{folder}/b.tsv"], "test": "{folder}/b.tsv",
        }}),
        preprocessors=[
            split_tabs, seqio.preprocessors.tokenize, *cache, seqio.preprocessors.append_eos,
        ],
        output_features={{n: seqio.Feature(vocabulary) for n in ("inputs", "targets")}},
        metric_fns=[],
    )
seqio.MixtureRegistry.add("own_mix", ["own_first", "own_second"], default_rate=1.0)
"""

VOCABULARY = config.Vocabulary(path=str(toy.VOCABULARY), extra_ids=7)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task file with data beside it, and a module with SeqIO tasks; the working folder."""
    (tmp_path / "lines.py").write_text(TASK)
    for split, count in (("train", 23), ("test", 4)):
        rows: list[dict[str, Any]] = [
            {
                "input": f"{i} plus {i}</s>sooooooo",
                "label": f"sum {2 * i}",
                "teacher_label": f"sum {i}",
                "rationale": f"because {i}" * (i % 3),
            }
            for i in range(count)
        ]
        if split == "train":
            # In the second part of seven rows, and in no other.
            rows[9]["several"] = ["because 9", "or not", "because 9"]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text)
    for name, count in (("a", 19), ("b", 11)):
        lines = [f"{name} {i}\t{'drop' if i % 5 == 2 else i}\n" for i in range(count)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines))
    (tmp_path / "own_tasks.py").write_text(OWN.format(folder=tmp_path, model=toy.VOCABULARY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _store(task: config.Task, name: str, folder: Path, beam: Any = None) -> TokenStore:
    data = config.Data(store_dir=str(folder / name))
    return prepare.ensure_store(task, VOCABULARY, data, task_dirs=[folder], beam=beam)


def _files(store: TokenStore) -> dict[str, bytes]:
    found = (f for f in store.path.rglob("*") if f.is_file())
    return {f.relative_to(store.path).as_posix(): f.read_bytes() for f in found}


OWN_TASK = config.Task(mixture_or_task_name="own_mix", mixture_or_task_module="own_tasks")


@pytest.mark.slow
@pytest.mark.parametrize("task", [config.Task(name="lines"), OWN_TASK], ids=["task", "seqio"])
def test_beam_makes_the_same_bytes(task: config.Task, folder: Path) -> None:
    pytest.importorskip("apache_beam", reason='needs pip install "dss-jax[beam]"')
    options = {
        "pipeline_options": ["--runner=DirectRunner"],
        "temp_dir": str(folder / "parts"),
        "rows": 7,
    }
    ordinary = _files(_store(task, "ordinary", folder))
    made = _files(_store(task, "beam", folder, options))
    assert made.keys() == ordinary.keys()
    assert [name for name in made if made[name] != ordinary[name]] == []
    splits = json.loads(made["manifest.json"])["splits"]
    assert splits["train"]["rows"] in (23, 48)
    columns = {split: "rationale_samples" in entry["columns"] for split, entry in splits.items()}
    assert columns == {"train": task.name == "lines", "test": False}
    # Nothing is left of the parts.
    assert not list((folder / "parts").iterdir())


def test_rows_that_somebody_else_put_there_are_not_unpickled(tmp_path: Path) -> None:
    pytest.importorskip("apache_beam", reason='needs pip install "dss-jax[beam]"')
    from dss_jax.data import seqio_beam

    name, rows = tmp_path / "train-000000", pickle.dumps(["a row"])
    seen: list = []
    worker = seqio_beam._Tokenise(lambda part: seen.append(part) or {})
    digest = hashlib.sha256(rows).hexdigest()
    Path(f"{name}.rows").write_bytes(rows)
    worker.process((str(name), digest))
    assert seen == [["a row"]]
    Path(f"{name}.rows").write_bytes(pickle.dumps(["another"]))
    with pytest.raises(RuntimeError, match=r"train-000000\.rows was changed by others"):
        worker.process((str(name), digest))
    assert seen == [["a row"]]


def test_beam_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["prepare", "--task", "word_problems", "--beam"]) == 2
    assert 'pip install "dss-jax[beam]"' in capsys.readouterr().err


@pytest.mark.slow
def test_a_cached_task_of_seqio_is_read(folder: Path) -> None:
    pytest.importorskip("apache_beam", reason="seqio_cache_tasks needs Apache Beam")
    cache = folder / "cache"
    command = [
        *(sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--tasks=own_first"),
        *(f"--output_cache_dir={cache}", "--module_import=own_tasks", "--min_shards=1"),
    ]
    subprocess.run(command, check=True, capture_output=True, env=_environ(folder))
    own = {"mixture_or_task_name": "own_first", "mixture_or_task_module": "own_tasks"}
    fresh = _store(config.Task(**own), "fresh", folder)
    cached = config.Task(**own, use_cached=True, seqio_cache_dirs=str(cache))
    store = _store(cached, "cached", folder)
    assert store.manifest["key"] != fresh.manifest["key"]
    for split in ("train", "test"):
        rows = [sorted(_rows(one.split(split))) for one in (fresh, store)]
        assert rows[0] == rows[1]
        assert rows[0]
    # The text is not read again: the cache alone is.
    (folder / "a.tsv").unlink()
    assert _store(cached, "again", folder).manifest["files"] == store.manifest["files"]


def _rows(split: StoreSplit) -> list[tuple]:
    columns = [split.tokens(name) for name in ("label_inputs", "label_targets")]
    texts = split.text("input")[:]
    return [(text, *(tuple(column[i]) for column in columns)) for i, text in enumerate(texts)]


def _environ(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "-1"}


@pytest.mark.slow
def test_what_is_not_cached_is_said(folder: Path) -> None:
    own = {"mixture_or_task_module": "own_tasks", "use_cached": True}
    task = config.Task(
        mixture_or_task_name="own_first", seqio_cache_dirs=str(folder / "nowhere"), **own
    )
    with pytest.raises(UsageError, match=r"'own_first' is not cached. Looked in .*nowhere"):
        _store(task, "x", folder)
    task = config.Task(mixture_or_task_name="own_second", **own)
    with pytest.raises(UsageError, match=r"'own_second' cannot be cached.*Leave --use_cached out"):
        _store(task, "x", folder)


def test_a_task_file_has_no_cache() -> None:
    with pytest.raises(UsageError, match=r"Task\.use_cached is for a SeqIO task or mixture"):
        config.Task(name="cqa", use_cached=True)
