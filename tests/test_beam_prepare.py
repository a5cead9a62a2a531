"""Token stores by Apache Beam, and SeqIO's own cached tasks as a source; on the direct runner."""

import json
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
from dss_jax.data.store import TokenStore

TASK = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example

TASK = DistillationTask(
    name="lines", description="lines", licence="none",
    sources=(Jsonl(files={"train": "train.jsonl", "test": "test.jsonl"}),),
    to_example=plain_example, scorer=TEXT_ACCURACY,
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
        rows = [
            {"input": f"{i} plus {i}", "label": f"sum {2 * i}", "teacher_label": f"sum {i}",
             "rationale": f"because {i}" * (i % 3)} for i in range(count)
        ]  # fmt: skip
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
    return prepare.ensure_store(
        task, VOCABULARY, data, task_dirs=[folder], log=lambda _: None, beam=beam
    )


def _files(store: TokenStore) -> dict[str, bytes]:
    found = (f for f in store.path.rglob("*") if f.is_file())
    return {f.relative_to(store.path).as_posix(): f.read_bytes() for f in found}


OWN_TASK = config.Task(mixture_or_task_name="own_mix", mixture_or_task_module="own_tasks")


@pytest.mark.slow
@pytest.mark.parametrize("task", [config.Task(name="lines"), OWN_TASK], ids=["task", "seqio"])
def test_beam_makes_the_same_bytes(task: config.Task, folder: Path) -> None:
    pytest.importorskip("apache_beam", reason='needs pip install "dss-jax[beam]"')
    options = {
        "pipeline_options": ["--runner=DirectRunner"], "temp_dir": str(folder / "parts"),
        "rows": 7, "data_dir": None, "rationales": [],
    }  # fmt: skip
    ordinary = _files(_store(task, "ordinary", folder))
    made = _files(_store(task, "beam", folder, options))
    assert made.keys() == ordinary.keys()
    assert [name for name in made if made[name] != ordinary[name]] == []
    assert json.loads(made["manifest.json"])["splits"]["train"]["rows"] in (23, 48)
    # Nothing is left of the parts.
    assert not list((folder / "parts").iterdir())


def test_beam_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["prepare", "--task", "word_problems", "--beam"]) == 2
    assert 'pip install "dss-jax[beam]"' in capsys.readouterr().err


@pytest.mark.slow
def test_a_cached_task_of_seqio_is_read(folder: Path) -> None:
    pytest.importorskip("apache_beam", reason="seqio_cache_tasks needs Apache Beam")
    cache = folder / "cache"
    command = [
        sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--tasks=own_first",
        f"--output_cache_dir={cache}", "--module_import=own_tasks", "--min_shards=1",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env=_environ(folder))
    own = {"mixture_or_task_name": "own_first", "mixture_or_task_module": "own_tasks"}
    fresh = _store(config.Task(**own), "fresh", folder)
    cached = config.Task(**own, use_cached=True, seqio_cache_dirs=str(cache))
    store = _store(cached, "cached", folder)
    assert store.manifest["key"] != fresh.manifest["key"]
    for split in ("train", "test"):
        rows = [
            sorted(
                (s.split(split).text("input")[i], tuple(s.split(split).tokens("label_inputs")[i]),
                 tuple(s.split(split).tokens("label_targets")[i]))
                for i in range(len(s.split(split)))
            )
            for s in (fresh, store)
        ]  # fmt: skip
        assert rows[0] == rows[1]
        assert rows[0]
    # The text is not read again: the cache alone is.
    (folder / "a.tsv").unlink()
    assert _store(cached, "again", folder).manifest["files"] == store.manifest["files"]


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
