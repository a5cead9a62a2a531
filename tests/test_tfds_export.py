"""Records as a TFDS folder: read back by TFDS and SeqIO, and trained on by a SeqIO task's name.

Imports TensorFlow; the fixture exports once.
"""

import json
import re
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest
from test_rationales import MODEL, record

from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.log import shown
from dss_jax.core.types import Example
from dss_jax.data import seqio_export
from dss_jax.data.prepare import ensure_store
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.records.files import write_records
from dss_jax.records.records import Header, Record

ROWS = 30
MODULE = """
import functools
import seqio

vocabulary = seqio.SentencePieceVocabulary({model!r}, extra_ids=0)
features = {{name: seqio.Feature(vocabulary, add_eos=True) for name in ("inputs", "targets")}}
seqio.TaskRegistry.add(
    "explained",
    source=seqio.TfdsDataSource(tfds_name="sums_rationales:1.2.0", tfds_data_dir={folder!r}),
    preprocessors=[
        lambda dataset: dataset.filter(lambda row: row["status"] == "ok"),
        functools.partial(
            seqio.preprocessors.rekey, key_map={{"inputs": "input", "targets": "rationale"}}
        ),
        seqio.preprocessors.tokenize,
        seqio.preprocessors.append_eos,
    ],
    output_features=features,
)
"""


def records(split: str, rows: int = ROWS) -> list[Record]:
    """Every tenth is not ok; ids are out of order, texts are not ASCII."""
    examples = [
        Example(id=f"{split}-{97 * i % 31}", input=f"Wie viel ist {i} + ½?", label=f"( {i} + 0.5 )")
        for i in range(rows)
    ]
    found = [record(e, "refused" if i % 10 == 9 else "ok") for i, e in enumerate(examples)]
    return found


def write(folder: Path, split: str, found: list[Record] | None = None, **header: Any) -> Path:
    file = folder / f"{header.get('task', 'sums')}-{split.replace('/', '_')}.jsonl"
    fields = {"task": "sums", "split": split, "teacher": "größer", "terms": "research only"}
    write_records(file, Header(**(fields | header)), records(split) if found is None else found)
    return file


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder, after an export of two splits."""
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("export")
    files = [write(folder, "train"), write(folder, "test", records("test", 3))]
    handler = BufferingHandler(10)
    with shown(handler):
        path = seqio_export.export_records(files, folder / "data", version="1.2.0")
    assert path == folder / "data" / "sums_rationales" / "1.2.0"
    told = ["train: 30 records in 1 shards", "test: 3 records in 1 shards"]
    assert [record.getMessage() for record in handler.buffer] == told
    return folder / "data"


def test_tfds_reads_it_from_the_directory(exported: Path) -> None:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(exported / "sums_rationales" / "1.2.0")
    assert (builder.name, str(builder.version)) == ("sums_rationales", "1.2.0")
    assert {s: i.num_examples for s, i in builder.info.splits.items()} == {"train": 30, "test": 3}
    headers = [json.loads(line) for line in builder.info.description.splitlines()]
    assert [h["split"] for h in headers] == ["train", "test"]
    assert headers[0]["teacher"] == "größer"
    assert headers[0]["terms"] == "research only"


def test_seqio_reads_what_the_records_say_in_their_order(exported: Path) -> None:
    import seqio

    source = seqio.TfdsDataSource(
        tfds_name="sums_rationales:1.2.0", tfds_data_dir=str(exported), splits=("train", "test")
    )
    rows = list(source.get_dataset("train", shuffle=False).as_numpy_iterator())
    assert len(rows) == ROWS
    for row, expected in zip(rows, records("train"), strict=True):
        assert row.pop("agreement") == expected.agreement
        same = ("id", "input", "teacher_label", "rationale", "status")
        texts = {"label": expected.gold, **{name: getattr(expected, name) for name in same}}
        assert {k: v.decode() for k, v in row.items()} == texts


@pytest.mark.slow
def test_a_seqio_task_over_it_is_trained_by_its_name(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MODULE.format(model=str(MODEL), folder=str(exported))
    (tmp_path / "sums_task.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    store = ensure_store(
        config.Task(mixture_or_task_name="explained", mixture_or_task_module="sums_task"),
        config.Vocabulary(),
        config.Data(store_dir=str(tmp_path / "stores")),
    )
    train = store.split("train")
    expected = [r for r in records("train") if r.status == "ok"]
    assert len(train) == len(expected) == 27
    vocabulary = SentencePiece(store.vocabulary_path, store.extra_ids)
    for i, found in enumerate(expected):
        assert train.tokens("label_targets")[i].tolist() == [*vocabulary.encode(found.rationale), 1]


def test_the_command_names_the_data_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(write(tmp_path, "validation"))
    export = ["records", "export", file, "--to", str(tmp_path / "d"), "--name", "my_sums"]
    assert main(export) == 0
    assert capsys.readouterr().out.splitlines() == [
        "validation: 30 records in 1 shards",
        f"data set: {tmp_path}/d/my_sums/1.0.0",
        f'seqio.TfdsDataSource(tfds_name="my_sums:1.0.0", tfds_data_dir="{tmp_path}/d")',
    ]
    assert main(export) == 2
    assert re.search(r"my_sums/1.0.0 is there already.*--version", capsys.readouterr().err)
    assert main(["records", "export", file]) == 2
    assert "export FILE ... --to DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("second", "settings", "message"),
    [
        ({"split": "train", "task": "sums"}, {}, "two files are of one split"),
        ({"split": "test", "task": "cqa"}, {}, "of several tasks: cqa, sums"),
        ({"split": "test", "found": []}, {}, "sums-test.jsonl has no records"),
        ({"split": "x/../../../y"}, {}, "the split 'x/../../../y' of a record file"),
        (None, {"version": "1.0"}, "MAJOR.MINOR.PATCH, as 1.0.0, not '1.0'"),
        (None, {"name": "My-Sums"}, "'My-Sums' is none for TFDS"),
    ],
)
def test_mistakes(
    tmp_path: Path, second: dict[str, Any] | None, settings: dict[str, Any], message: str
) -> None:
    files = [write(tmp_path, "train")]
    if second is not None:
        (tmp_path / "second").mkdir()
        files.append(write(tmp_path / "second", **second))
    with pytest.raises(UsageError, match=message):
        seqio_export.export_records(files, tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()
