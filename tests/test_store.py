"""The token store's files: what is written is read back, and damage is seen."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dss_jax.core.errors import UsageError
from dss_jax.data import store_writer
from dss_jax.data.ragged import Ragged
from dss_jax.data.store import MANIFEST, StoreDamaged, TokenStore, key_of, open_store
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.layouts.health import count_overlong

ROWS = [
    ([5, 6, 1], [7, 1], "first"),
    ([70_000, 1], [], "zweite Zeile, ü ∑"),
    ([8, 9, 10, 1], [2, 3, 1], ""),
]


def built() -> SplitBuilder:
    split = SplitBuilder(("label_inputs", "label_targets"), ("id", "input"))
    for number, (inputs, targets, text) in enumerate(ROWS):
        split.append(
            {"label_inputs": inputs, "label_targets": targets}, {"id": f"r{number}", "input": text}
        )
    return split


def write(path: Path, note: str = "a", *, replace: bool = False) -> TokenStore:
    vocabulary = path.parent / "v.model"
    vocabulary.write_bytes(b"pieces")
    empty = SplitBuilder(("label_inputs", "label_targets"), ("id", "input"))
    description = {"name": "mine", "note": note, "unavailable": {"test": "no network"}}
    splits = {"train": built(), "validation": empty}
    return write_store(path, splits, vocabulary, 100, description, replace=replace)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return write(tmp_path / "store")


def test_what_is_written_is_read(store: TokenStore) -> None:
    assert store.splits == ("train", "validation")
    assert store.extra_ids == 100
    assert store.vocabulary_path.read_bytes() == b"pieces"
    train = store.split("train")
    assert len(train) == 3
    for row, (inputs, targets, text) in enumerate(ROWS):
        assert train.tokens("label_inputs")[row].tolist() == inputs
        assert train.tokens("label_targets")[row].tolist() == targets
        assert train.text("input")[row] == text
    assert train.tokens("label_targets").lengths().tolist() == [2, 0, 3]
    assert train.tokens("label_targets").values.dtype == np.uint8
    assert train.tokens("label_inputs").values.dtype == np.uint32
    assert train.text("id")[1:] == ["r1", "r2"]
    assert train.tokens("label_inputs")[-1].tolist() == [8, 9, 10, 1]
    assert isinstance(train.tokens("label_inputs").values, np.memmap)
    assert len(store.split("validation")) == 0
    assert store.has("label_inputs")
    assert not store.has("rationale_inputs")


def test_rows_out_of_range_are_refused() -> None:
    ragged = Ragged(np.array([1, 2, 3]), np.array([0, 1, 3]))
    with pytest.raises(IndexError, match=r"row 2 of 2"):
        ragged[2]


def test_overlong_rows_are_counted(store: TokenStore) -> None:
    train = store.split("train")
    assert [count_overlong(train, "label_inputs", n) for n in (1, 2, 3, 4)] == [3, 2, 1, 0]


def test_unknown_columns_and_splits_are_explained(store: TokenStore) -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'label_inputs'"):
        store.split("train").tokens("label_input")
    with pytest.raises(UsageError, match=r"no 'test' split; it has: train, validation. no network"):
        store.split("test")


def test_a_copied_store_needs_nothing_else(store: TokenStore, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "elsewhere" / "s"
    shutil.copytree(store.path, moved)
    shutil.rmtree(store.path)
    (tmp_path / "v.model").unlink()
    assert open_store(moved).vocabulary_path.read_bytes() == b"pieces"


VALUES = "train/label_inputs.values.npy"


def truncate(path: Path) -> None:
    (path / VALUES).write_bytes((path / VALUES).read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / VALUES).read_bytes())
    content[-1] ^= 1
    (path / VALUES).write_bytes(content)


def remove_a_file(path: Path) -> None:
    (path / VALUES).unlink()


def remove_the_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def cut_the_manifest(path: Path) -> None:
    (path / MANIFEST).write_text((path / MANIFEST).read_text()[:-40])


def change_the_manifest(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["name"] = "other"
    (path / MANIFEST).write_text(json.dumps(manifest))


def another_format(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["format"] = 99
    (path / MANIFEST).write_text(json.dumps(manifest))


def a_file_elsewhere(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["../v.model"] = manifest["files"]["vocabulary.model"]
    manifest["sha256"] = key_of(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def a_split_elsewhere(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["splits"]["../other/train"] = manifest["splits"]["train"]
    manifest["sha256"] = key_of(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def change_the_vocabulary(path: Path) -> None:
    (path / "vocabulary.model").write_bytes(b"Pieces")


DAMAGE = [
    (truncate, "has 1\\d\\d bytes, not"),
    (flip_a_bit, "label_inputs.values.npy was changed"),
    (remove_a_file, "label_inputs.values.npy is missing"),
    (remove_the_manifest, "no manifest.json"),
    (cut_the_manifest, "manifest.json is unreadable"),
    (change_the_manifest, "manifest.json was changed"),
    (another_format, "has format 99.*reads format"),
    (change_the_vocabulary, "vocabulary.model was changed"),
    (a_file_elsewhere, r"'\.\./v\.model', which would lie outside"),
    (a_split_elsewhere, r"'\.\./other/train/.*', which would lie outside"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_seen_and_repaired(store: TokenStore, damage: "object", message: str) -> None:
    assert callable(damage)
    damage(store.path)
    with pytest.raises(StoreDamaged, match=message):
        open_store(store.path)
    again = write(store.path)
    assert again.split("train").tokens("label_inputs")[0].tolist() == [5, 6, 1]
    assert [p.name for p in store.path.parent.iterdir() if p.name.startswith(".")] == []


def test_a_sound_store_stays_unless_asked(store: TokenStore) -> None:
    assert write(store.path, "b").manifest["note"] == "a"
    assert write(store.path, "b", replace=True).manifest["note"] == "b"


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store_writer.np, "save", full)
    with pytest.raises(OSError, match=r"disk full"):
        write(tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["v.model"]


def test_a_killed_writer_leaves_nothing_that_is_served(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from dss_jax.data import store_writer\n"
        "from tests.test_store import write\n"
        "store_writer._sync = lambda p: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write(Path(sys.argv[1]))\n"
    )
    path = tmp_path / "store"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert done.returncode == -9
    assert not path.exists()
    assert len(list(tmp_path.glob(".partial-*"))) == 1
    write(path)
    assert not list(tmp_path.glob(".partial-*"))


def test_many_writers_at_once_all_end_well(tmp_path: Path) -> None:
    stores: list[TokenStore] = []
    (tmp_path / "v.model").write_bytes(b"pieces")

    def one() -> None:
        stores.append(write(tmp_path / "store"))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "v.model"]
