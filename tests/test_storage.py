"""Paths under gs:// and s3://, against servers that speak these protocols over HTTP."""

import dataclasses
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError

import jax
import numpy as np
import pytest
import toy
from fake_gcs import FakeGcs
from test_t5x import random_weights

from dss_jax.cli.main import main
from dss_jax.core import config, storage
from dss_jax.core.bucket_copy import INDEX
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data import download, prepare, rows, sources, vocabulary
from dss_jax.data.store import open_store
from dss_jax.interop.formats import read_weights, write_weights
from dss_jax.interop.weights import flat
from dss_jax.run import single
from dss_jax.run.session import open_session
from dss_jax.train.metric_log import MetricLog, read_metrics

pytest.importorskip("gcsfs", reason="needs the extra gcs")


def _forget(kind: type) -> None:
    """fsspec, and etils above it, keep a file system with the address that it was made with. A
    module's tests may be shared out anew between workers, and its server started again elsewhere.
    """
    from etils.epath import backend

    kind.clear_instance_cache()
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    server = FakeGcs()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TENSORSTORE_GCS_HTTP_URL", "STORAGE_EMULATOR_HOST"):
            patch.setenv(name, server.url)
        patch.setenv("EPATH_USE_TF", "false")
        # Nor is Google's metadata server looked for.
        patch.setenv("NO_GCE_CHECK", "true")
        patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        patch.setenv("CLOUDSDK_CONFIG", str(tmp_path_factory.mktemp("gcloud")))
        import gcsfs

        _forget(gcsfs.GCSFileSystem)
        yield server
    server.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of moto's server, with the bucket `mine`."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer(port=0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPATH_USE_TF", "false")
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        import s3fs

        _forget(s3fs.S3FileSystem)
        urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()
        s3fs.S3FileSystem().mkdir("mine")
        yield url
    server.stop()


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> str:
    """A new folder of a bucket."""
    request.getfixturevalue("gcs" if request.param == "gs" else "s3")
    return f"{request.param}://mine/{request.node.name.partition('[')[0]}"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours alone: the servers log, too."""
    return [r.message for r in caplog.records if r.name.startswith("dss_jax")]


def test_local_paths_stay_what_they_are(tmp_path: Path) -> None:
    assert storage.place(tmp_path / "x") == tmp_path / "x"
    assert isinstance(storage.place(str(tmp_path)), Path)
    assert storage.local_folder(tmp_path) == storage.local_file(tmp_path) == tmp_path
    with pytest.raises(UsageError, match=r"hdfs://x: only local paths, gs:// and s3://"):
        storage.place("hdfs://x")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'needs gcsfs, .* pip install "dss-jax\[gcs\]"'):
        storage.place("gs://mine/run")
    with pytest.raises(UsageError, match=r'needs s3fs, .* pip install "dss-jax\[s3\]"'):
        storage.local_folder("s3://mine/run")


def test_files_are_written_and_read(bucket: str) -> None:
    place = storage.place(bucket)
    assert not place.exists()
    for content in (b"", b"a\r\n--b\n\n", bytes(range(256)) * 30_000):
        write_whole(place / "a" / "file", content)
        assert (place / "a" / "file").read_bytes() == content
        assert storage.local_file(f"{bucket}/a/file").read_bytes() == content
    assert [p.name for p in place.iterdir()] == ["a"]
    assert storage.exists(bucket)


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"one"
        write_whole(tmp_path / "file", "another")  # As from a container whose pids are the same.
        assert (tmp_path / "file").read_text() == "another"
        yield b" and two"

    write_whole(tmp_path / "file", parts())
    assert (tmp_path / "file").read_text() == "one and two"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_copy_is_made_once_for_each_version(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dss_jax")
    place = storage.place(bucket)
    write_whole(place / "a.txt", "one")
    write_whole(place / "b" / "c.txt", "two")
    copy = storage.local_folder(bucket)
    assert (copy / "b" / "c.txt").read_text() == "two"
    assert storage.local_folder(f"{bucket}/") == copy
    assert said(caplog) == [f"fetching 2 files, 0.0 MB, from {bucket}"]
    write_whole(place / "a.txt", "ONE")
    (place / "b" / "c.txt").unlink()
    storage.local_folder(bucket)
    assert said(caplog)[1:] == [f"fetching 1 files, 0.0 MB, from {bucket}"]
    assert (copy / "a.txt").read_text() == "ONE"
    assert not (copy / "b" / "c.txt").exists()


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "a//out.txt", "./a"])
def test_a_name_in_a_bucket_never_leaves_the_copy(
    gcs: FakeGcs, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "cache"))
    folder = f"mine/names/{len(gcs.objects)}"
    gcs.put(f"{folder}/config.gin", b"whole")
    gcs.put(f"{folder}/{name}", b"from the bucket")
    with pytest.raises(UsageError, match=r"names a file .* outside of its folder"):
        storage.local_folder(f"gs://{folder}")
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_what_a_bucket_says_was_copied_deletes_nothing_outside(
    gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "cache"))
    mine = tmp_path / "cache" / "mine.txt"
    gcs.put("mine/index/a", b"one")
    copy = storage.local_folder("gs://mine/index")
    mine.write_text("mine")
    # A copy that was put back into the bucket; and one that an earlier version has let in.
    gcs.put(f"mine/index/{INDEX}", json.dumps({"../../mine.txt": ["4", ""]}).encode())
    storage.local_folder("gs://mine/index")
    assert json.loads((copy / INDEX).read_text()).keys() == {"a"}
    (copy / INDEX).write_text(json.dumps({"../../mine.txt": ["4", ""]}))
    with pytest.raises(UsageError, match="outside of its folder"):
        storage.local_folder("gs://mine/index")
    assert mine.read_text() == "mine"


def test_a_link_does_not_lead_out_of_the_copy(
    gcs: FakeGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "cache"))
    gcs.put("mine/links/a", b"one")
    copy = storage.local_folder("gs://mine/links")
    (tmp_path / "elsewhere").mkdir()
    (copy / "sub").symlink_to(tmp_path / "elsewhere")
    gcs.put("mine/links/sub/b", b"two")
    with pytest.raises(UsageError, match="leads out of"):
        storage.local_folder("gs://mine/links")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_what_is_not_there_or_not_allowed_is_said(gcs: FakeGcs, s3: str) -> None:
    gcs.forbidden.add("closed")
    gcs.missing.add("no-bucket")
    for read in (storage.local_file, storage.local_folder):
        with pytest.raises(UsageError, match=r"no permission for gs://closed/x .*gcloud auth"):
            read("gs://closed/x")
        for path in ("gs://no-bucket/x", "gs://mine/nowhere", "s3://no-bucket/x", "s3://mine/no"):
            with pytest.raises(UsageError, match=f"there is no {path}: no such bucket, or"):
                read(path)
    assert main(["eval", "--output_dir", "gs://mine/nowhere"]) == 2


def test_missing_credentials_are_said(s3: str) -> None:
    # In a fresh process, for the client keeps its credentials.
    code = (
        "import os\nfor n in list(os.environ):\n    if n.startswith('AWS'): del os.environ[n]\n"
        "os.environ['AWS_EC2_METADATA_DISABLED'] = 'true'\n"
        "os.environ['AWS_CONFIG_FILE'] = os.environ['AWS_SHARED_CREDENTIALS_FILE'] = '/nowhere'\n"
        f"os.environ['AWS_ENDPOINT_URL'] = {s3!r}\n"
        "from dss_jax.core import storage\nstorage.local_file('s3://mine/x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UsageError: no permission for s3://mine/x (Unable to locate credentials" in done.stderr
    assert "aws configure" in done.stderr


def test_a_store_is_copied_once_and_checked(
    bucket: str, toy_store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dss_jax")
    storage.upload_folder(toy_store.path, bucket, last="manifest.json")
    data = config.Data(store=bucket)
    vocab = config.Vocabulary(extra_ids=0)
    store = prepare.ensure_store(config.Task(name="toy"), vocab, data)
    assert store.manifest == toy_store.manifest
    np.testing.assert_array_equal(
        store.split("test").tokens("label_inputs").values,
        toy_store.split("test").tokens("label_inputs").values,
    )
    # A damaged copy is fetched again; a damaged original is an error.
    damaged = store.path / "vocabulary.model"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    assert prepare.open_anywhere(bucket).manifest == toy_store.manifest
    assert len(said(caplog)) == 2
    write_whole(storage.place(bucket) / "vocabulary.model", "damaged")
    with pytest.raises(UsageError, match=r"is damaged: vocabulary\.model"):
        prepare.open_anywhere(bucket)


def test_one_machine_makes_a_store_and_the_others_fetch_it(
    bucket: str, toy_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(request, path, need, beam):
        made.append(path)
        return open_store(shutil.copytree(toy_store.path, path))

    monkeypatch.setattr(prepare, "_make", make)
    data = config.Data(store_dir=bucket)
    for machine in ("one", "two"):
        monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / machine))
        task, vocab = config.Task(name="word_problems"), config.Vocabulary()
        store = prepare.ensure_store(task, vocab, data)
        assert store.manifest == toy_store.manifest
    assert [path.parent for path in made] == [tmp_path / "one" / "stores"]


def test_data_vocabulary_and_records_are_read_from_buckets(bucket: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        row, folder = '{"input": "x", "label": "(1 + 1)"}\n', storage.place(bucket) / "svamp"
        write_whole(folder / f"svamp_{split}.json", row * 10)
        write_whole(folder / "llm" / f"{split}_CoT_0.json", json.dumps(["The answer is 2."] * 10))
    from dss_jax.core.registry import load_task

    task = load_task("svamp")
    assert set(sources.available_splits(task, bucket)) == {"train", "validation", "test"}
    assert len(rows.examples(task, "test", bucket)) == 10
    model = toy.VOCABULARY.read_bytes()
    write_whole(storage.place(bucket) / "t5.model", model)
    # Over https:// a private bucket says no.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "_fetch", _no_fetch)
        assert vocabulary.resolve(f"{bucket}/t5.model").read_bytes() == model
    task_cfg = config.Task(name="svamp", data_dir=bucket, record_files=f"{bucket}/no.jsonl")
    with pytest.raises(UsageError, match=f"there is no {bucket}/no.jsonl"):
        prepare.make_request(task_cfg, config.Vocabulary(path=str(toy.VOCABULARY)))


def _no_fetch(*_: object) -> None:
    raise UsageError("private") from HTTPError("", 403, "Forbidden", Message(), None)


@pytest.mark.parametrize("format", ["hf", pytest.param("orbax", marks=pytest.mark.slow), "t5x"])
def test_checkpoints_are_converted_to_and_from_buckets(format: str, bucket: str) -> None:
    weights = random_weights()
    place = f"{bucket}/{format}/checkpoint_1"
    write_weights(weights, place, format)
    again = read_weights(place)
    assert again.config == weights.config
    for path, value in flat(weights.tree()).items():
        np.testing.assert_array_equal(again.leaves[path].read(), value, path)
    with pytest.raises(UsageError, match="is there already"):
        write_weights(weights, place, format)


def test_logs_are_uploaded_and_continued(bucket: str) -> None:
    place = storage.place(bucket)
    for start, step in ((0, 1), (0, 2), (2, 3)):
        log = MetricLog(place, start)
        log(step, "train", {"loss": float(step)})
        log(step, "validation", {"loss": float(step)})
        log.close()
    assert [m["step"] for m in read_metrics(place / "metrics.jsonl")] == [2, 2, 3, 3]
    assert list((place / "tensorboard").iterdir())


def test_sqlite_and_orbax_say_where_they_cannot_write(capsys) -> None:
    train = ["train", "--task", "word_problems", "--model", "t5_1_1_tiny"]
    assert main([*train, "--output_dir", "s3://mine/run"]) == 2
    assert "writes checkpoints to local folders and gs:// only" in capsys.readouterr().err
    extract = ["extract", "--task", "cqa", "--split", "test", "--model", "m"]
    assert main([*extract, "--out", "gs://mine/cqa.jsonl"]) == 2
    assert "--out gs://mine/cqa.jsonl: must be a local path" in capsys.readouterr().err
    assert main([*extract, "--out", "x.jsonl", "--journal", "s3://mine/j"]) == 2
    assert "--journal s3://mine/j: must be a local path" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_lives_in_a_bucket(gcs: FakeGcs, toy_store, said: list[str]) -> None:
    run = toy.make_run(mesh=config.Mesh(data=4))
    run = dataclasses.replace(
        run, train=dataclasses.replace(run.train, output_dir="gs://mine/runs/toy", steps=4)
    )
    results = single.train(run, toy_store, TEXT_ACCURACY)
    written = {n.removeprefix("mine/runs/toy/") for n in gcs.objects if n.startswith("mine/runs")}
    texts = {"config.gin", "results.json", "metrics.jsonl", "t5_config.json"}
    assert texts | {"curves.png", "spiece.model", "predictions/test-best.jsonl"} <= written
    assert json.loads(gcs.objects["mine/runs/toy/results.json"]) == results
    steps = {n.split("/")[1] for n in written if n.startswith("checkpoints/")}
    assert steps == {str(results["best_step"]), "4"}
    lines = [json.loads(s) for s in gcs.objects["mine/runs/toy/metrics.jsonl"].splitlines()]
    assert [m["step"] for m in lines if m["group"] == "train"] == [1, 2, 3, 4]
    # It goes on from its checkpoint, and its student is read as any checkpoint.
    gcs.objects.pop("mine/runs/toy/results.json")
    assert single.train(run, toy_store, TEXT_ACCURACY) == results
    assert "going on from the checkpoint of step 4" in said
    weights = read_weights("gs://mine/runs/toy")
    session = open_session(run, storage.place("gs://mine/runs/toy"), toy_store, TEXT_ACCURACY)
    checkpoints = session.checkpoints()
    best = checkpoints.restore_params(results["best_step"], session.program.abstract_state.params)
    checkpoints.close()
    for path, value in list(flat(jax.tree.map(np.asarray, best)).items())[::5]:
        np.testing.assert_array_equal(weights.leaves[path].read(), value)


def test_a_remote_path_does_not_import_tensorflow() -> None:
    code = (
        "import sys\nfrom dss_jax.core import storage\nimport orbax.checkpoint\n"
        "storage.place('gs://mine/x')._backend\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "tensorflow_datasets", "seqio"} & set(done.stdout.split())
