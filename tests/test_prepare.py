"""Which store a run gets: its key, damage, two processes at once, a store that is given."""

import dataclasses
import functools
import http.server
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dss_jax.core import config, locks, storage
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID
from dss_jax.core.log import shown
from dss_jax.data import download, prepare, prepare_child, vocabulary
from dss_jax.data.prepare import ensure_store
from dss_jax.data.store import TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tasks" / "vocabularies" / "word_problems.model"

TASK_FILE = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example
TASK = DistillationTask(
    name="mine", description="d", licence="l",
    sources=(Jsonl(files={"train": "train.jsonl", "test": "test.jsonl"}),),
    to_example=plain_example, scorer=TEXT_ACCURACY, validation_fraction=0.5)
"""
ROWS = [
    {"input": f"How many are {i} and 2?", "label": f"( {i} + 2 )", "rationale": "", "id": f"r{i}"}
    for i in range(4)
]


@dataclasses.dataclass
class Place:
    """A folder with a task of its own, and the settings to prepare it."""

    folder: Path

    @property
    def task(self) -> config.Task:
        return config.Task(name="mine", data_dir=str(self.folder / "data"))

    @property
    def vocabulary(self) -> config.Vocabulary:
        return config.Vocabulary(path=str(self.folder / "v.model"), extra_ids=0)

    def ensure(
        self,
        task: config.Task | None = None,
        vocabulary: config.Vocabulary | None = None,
        **kwargs: Any,
    ) -> TokenStore:
        store = kwargs.pop("store", None)
        return ensure_store(
            task or self.task,
            vocabulary or self.vocabulary,
            config.Data(store_dir=str(self.folder / "stores"), store=store),
            task_dirs=[self.folder / "tasks"],
            **kwargs,
        )


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Place:
    caplog.set_level(logging.INFO, "dss_jax")
    monkeypatch.delenv("DSS_DATA_DIR", raising=False)
    for name in ("tasks", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(TASK_FILE)
    for name in ("train", "test"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "v.model").write_bytes(MODEL.read_bytes())
    return Place(tmp_path)


@pytest.fixture
def quick_child(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the child process; returns the keys of the stores that it was asked to make."""
    made: list[str] = []

    def run(request: dict[str, Any]) -> None:
        made.append(request["key"])
        split = SplitBuilder(("label_inputs",), ("id",))
        split.append({"label_inputs": [3, 1]}, {"id": "r"})
        fields = {k: request[k] for k in ("name", "kind", "key")} | {
            "prefixes": request.get("prefixes"),
            "unavailable": {"test": "no network"},
        }
        model = Path(request.get("vocabulary", MODEL))
        extra_ids = request.get("extra_ids", 0)
        write_store(Path(request["path"]), {"train": split}, model, extra_ids, fields, replace=True)

    monkeypatch.setattr(prepare_child, "run", run)
    return made


class TestRealChild:
    """Starts TensorFlow; once."""

    def test_a_store_is_made_once_without_tensorflow_here(
        self, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from dss_jax.core.log import shown\n"
            "from tests.test_prepare import Place\n"
            "with shown():\n"
            "    store = Place(Path(sys.argv[1])).ensure()\n"
            "print(store.path)\n"
            "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)\n"
        )
        command = [sys.executable, "-c", code, str(place.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        first, *rest, path = done.stdout.splitlines()
        assert first.startswith("preparing the token store of mine (once): ")
        assert "  train: 2 rows" in rest
        store = place.ensure()
        assert caplog.messages == []
        assert str(store.path) == path
        assert store.splits == ("train", "validation", "test")
        counts = store.manifest["counts"]["test"]
        assert counts == {"rows": 4, "label": 4, "teacher_label": 0, "rationale": 0}
        own = vocabulary.SentencePiece(store.vocabulary_path, store.extra_ids)
        test = store.split("test")
        ids = [*own.encode("[label] How many are 1 and 2?"), EOS_ID]
        assert test.tokens("label_inputs")[1].tolist() == ids
        assert own.decode(test.tokens("label_targets")[3]) == "( 3 + 2 )"
        assert test.tokens("rationale_targets").lengths().tolist() == [0] * 4
        assert own.decode(test.tokens("rationale_inputs")[0]).startswith("[rationale] How")

    def test_mistakes_in_the_data_show_before_tensorflow_starts(self, place: Place) -> None:
        (place.folder / "data" / "test.jsonl").write_text('{"input": "x"}\n{"text": "y"}\n')
        started = time.perf_counter()
        with pytest.raises(UsageError, match=r"test.jsonl, line 2: field 'input' is missing"):
            place.ensure()
        assert time.perf_counter() - started < 5
        assert not [p for p in (place.folder / "stores").iterdir() if p.is_dir()]

    def test_a_crash_keeps_its_traceback(self, place: Place) -> None:
        (place.folder / "v.model").write_bytes(MODEL.read_bytes())
        request = {**prepare.make_request(place.task, place.vocabulary, [place.folder / "tasks"])}
        with pytest.raises(prepare_child.PrepareError, match=r"Traceback(.|\n)*KeyError: 'path'"):
            prepare_child.run(request)

    def test_an_interrupted_child_leaves_nothing(self, place: Place) -> None:
        request = prepare.make_request(place.task, place.vocabulary, [place.folder / "tasks"])
        stores = place.folder / "stores"
        stores.mkdir()

        class Interrupt(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                raise KeyboardInterrupt

        # The first message comes when the child has begun to tokenise.
        with pytest.raises(KeyboardInterrupt), shown(Interrupt()):
            prepare_child.run({**request, "path": str(stores / "s")})
        assert list(stores.iterdir()) == []


@pytest.mark.usefixtures("quick_child")
class TestKey:
    def test_nothing_changed_opens_the_same(self, place: Place, quick_child: list[str]) -> None:
        first = place.ensure()
        assert place.ensure().path == first.path
        assert len(quick_child) == 1
        assert first.path.name.startswith("mine-")

    @pytest.mark.parametrize(
        "change", ["train.jsonl", "mine.py", "v.model", "prefixes", "extra_ids", "code"]
    )
    def test_a_change_makes_another(
        self, place: Place, quick_child: list[str], change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = place.ensure()
        task, cfg = place.task, place.vocabulary
        if change == "train.jsonl":
            file = place.folder / "data" / change
            stat = file.stat()
            file.write_text(file.read_text().replace("0 and", "9 and"))
            # Same size, same time: only the content tells.
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        elif change == "mine.py":
            (place.folder / "tasks" / change).write_text(TASK_FILE.replace("0.5", "0.25"))
        elif change == "v.model":
            (place.folder / change).write_bytes(MODEL.read_bytes() + b"\0")
        elif change == "prefixes":
            task = dataclasses.replace(task, prefixes="released_code")
        elif change == "extra_ids":
            cfg = dataclasses.replace(cfg, extra_ids=1)
        else:
            monkeypatch.setattr(prepare, "package_digest", lambda *rooms: f"another of {rooms}")
        second = place.ensure(task, cfg)
        assert second.path != first.path
        assert len(set(quick_child)) == 2

    def test_moving_the_data_does_not(self, place: Place, quick_child: list[str]) -> None:
        place.ensure()
        (place.folder / "data").rename(place.folder / "moved")
        place.ensure(dataclasses.replace(place.task, data_dir=str(place.folder / "moved")))
        assert len(quick_child) == 1

    def test_a_split_that_could_not_be_had_is_tried_again_where_needed(
        self, place: Place, quick_child: list[str]
    ) -> None:
        place.ensure()
        place.ensure(need=["train"])
        assert len(quick_child) == 1
        place.ensure(need=["train", "test"])
        assert len(quick_child) == 2

    def test_damage_is_said_and_repaired(
        self, place: Place, quick_child: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        path = place.ensure().path
        values = path / "train" / "label_inputs.values.npy"
        values.write_bytes(values.read_bytes()[:-1])
        caplog.clear()
        place.ensure()
        assert "damaged" in caplog.messages[0]
        assert "made again" in caplog.messages[0]
        assert len(quick_child) == 2
        place.ensure()
        assert len(quick_child) == 2

    def test_two_at_once_make_one(
        self,
        place: Place,
        quick_child: list[str],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        run = prepare_child.run

        def slow(*args: Any) -> None:
            time.sleep(0.3)
            run(*args)

        monkeypatch.setattr(prepare_child, "run", slow)
        monkeypatch.setattr(locks, "PATIENCE", 0.05)
        places = [Place(place.folder) for _ in range(3)]
        found: list[TokenStore] = []
        threads = [threading.Thread(target=lambda p=p: found.append(p.ensure())) for p in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 3
        assert len(quick_child) == 1
        assert any("waiting" in line for line in caplog.messages)

    def test_a_users_seqio_module_is_part_of_the_key(
        self, tmp_path: Path, quick_child: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        task = config.Task(mixture_or_task_name="a/b", mixture_or_task_module="pack.mod")
        (tmp_path / "pack").mkdir()
        for text in ("x = 1", "x = 1", "x = 2"):
            (tmp_path / "pack" / "mod.py").write_text(text)
            ensure_store(task, config.Vocabulary(), config.Data(store_dir="s"))
        assert len(quick_child) == 2
        assert all(p.name.startswith(("a_b-", ".lock-a_b-")) for p in (tmp_path / "s").iterdir())


@pytest.mark.usefixtures("quick_child")
class TestGivenStore:
    def test_it_is_opened_as_it_is(self, place: Place, tmp_path: Path) -> None:
        path = place.ensure().path.rename(tmp_path / "copied")
        for gone in ("data", "tasks"):
            (place.folder / gone).rename(place.folder / f"{gone}-gone")
        store = ensure_store(place.task, place.vocabulary, config.Data(store=str(path)))
        assert store.path == path

    @pytest.mark.parametrize(
        ("task", "cfg", "message"),
        [
            ({"name": "cqa"}, {}, "is for 'mine', not for 'cqa'"),
            ({"prefixes": "released_code"}, {}, "made with prefixes 'paper', not 'released_code'"),
            ({}, {"extra_ids": 100}, "0 extra ids, not 100.*Vocabulary.extra_ids=0"),
            ({}, {"path": "other.model"}, "another vocabulary than .*other.model"),
        ],
    )
    def test_one_for_something_else_is_refused(
        self, place: Place, task: dict[str, Any], cfg: dict[str, Any], message: str
    ) -> None:
        path = place.ensure().path
        other = place.folder / "other.model"
        other.write_bytes(MODEL.read_bytes() + b"\0")
        cfg = {k: str(other) if k == "path" else v for k, v in cfg.items()}
        with pytest.raises(UsageError, match=message):
            place.ensure(
                dataclasses.replace(place.task, **task),
                dataclasses.replace(place.vocabulary, **cfg),
                store=str(path),
            )

    def test_records_that_are_not_all_here_are_not_compared(self, place: Place) -> None:
        path = place.ensure().path
        here = place.folder / "here.jsonl"
        here.write_text("")
        task = dataclasses.replace(place.task, record_files=("gs://mine/there.jsonl", str(here)))
        assert place.ensure(task, store=str(path)).path == path

    def test_one_that_is_not_there(self, place: Place) -> None:
        with pytest.raises(UsageError, match=r"is no token store"):
            place.ensure(store=str(place.folder / "nowhere"))


def test_without_tensorflow_the_user_is_told_what_to_do(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_child.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"needs tensorflow and seqio.*--store"):
        place.ensure()


def test_no_data_shows_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DSS_DATA_DIR", raising=False)
    cfg = config.Vocabulary(path=str(MODEL))
    with pytest.raises(UsageError, match=r"no train split.*--data_dir"):
        ensure_store(config.Task(name="cqa"), cfg, config.Data(store_dir=str(tmp_path)))


class TestVocabularyFile:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[str]:
        (tmp_path / "www").mkdir()
        (tmp_path / "www" / "v.model").write_bytes(MODEL.read_bytes())
        handler = functools.partial(
            http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www")
        )
        handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
            threading.Thread(target=served.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{served.server_port}"
            served.shutdown()

    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("DSS_VOCABULARY", raising=False)

    def test_an_address_is_fetched_once(self, server: str, tmp_path: Path) -> None:
        file = vocabulary.resolve(f"{server}/v.model")
        assert file.read_bytes() == MODEL.read_bytes()
        (tmp_path / "www" / "v.model").unlink()
        assert vocabulary.resolve(f"{server}/v.model") == file

    def test_one_that_cannot_be_fetched_leaves_nothing(self, server: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"cannot fetch .*none.model.*--vocabulary FILE"):
            vocabulary.resolve(f"{server}/none.model")
        with pytest.raises(UsageError, match=r"cannot fetch"):
            vocabulary.resolve("http://127.0.0.1:9/v.model")
        assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]

    def test_one_that_ends_early_is_not_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Short(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"x" * 999)

            def log_message(self, *_: object) -> None:
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Short) as served:
            threading.Thread(target=served.handle_request, daemon=True).start()
            with pytest.raises(UsageError, match=r"cannot fetch .*IncompleteRead\(999 bytes"):
                vocabulary.resolve(f"http://127.0.0.1:{served.server_port}/v.model")
        assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]

    def test_no_network_is_said_at_once_and_after_what_is_wrong_with_the_data(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """gcsfs, where it is installed, is not asked: it would try for most of a minute."""

        def none(*_: object, **__: object) -> None:
            raise urllib.error.URLError(OSError("Name or service not known"))

        monkeypatch.setattr(urllib.request, "urlopen", none)
        monkeypatch.setattr(storage, "local_file", lambda name: pytest.fail(f"asks for {name}"))
        with pytest.raises(
            UsageError, match=r"^cannot fetch .* \(Name or .*--vocabulary FILE"
        ) as said:
            vocabulary.resolve(None)
        assert "\n" not in str(said.value)
        with pytest.raises(UsageError, match="has no train split"):
            prepare.make_request(config.Task(name="cqa"), config.Vocabulary())

    def test_a_public_bucket_is_fetched_over_https(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(download, "_fetch", lambda url, *_: asked.append(url))
        vocabulary.resolve(None)
        assert asked == [
            "https://storage.googleapis.com/t5-data/vocabs/cc_all.32000.100extra/"
            "sentencepiece.model"
        ]

    def test_the_order_of_choice(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        from dss_jax.core.registry import load_task

        monkeypatch.setenv("DSS_VOCABULARY", str(place.folder / "v.model"))
        own, none = load_task("word_problems"), load_task("cqa")
        assert vocabulary.resolve(None, own) == MODEL
        assert vocabulary.resolve(None, none) == place.folder / "v.model"
        assert vocabulary.resolve(str(MODEL), none) == MODEL

    def test_a_missing_or_wrong_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"does not exist.*--vocabulary FILE"):
            vocabulary.resolve(str(tmp_path / "x.model"))
        (tmp_path / "x.model").write_bytes(b"no model")
        with pytest.raises(UsageError, match=r"cannot be read as a SentencePiece model"):
            vocabulary.SentencePiece(tmp_path / "x.model")


def test_a_terminated_child_is_not_left_behind() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE, text=True
    )
    prepare_child._stop(child)
    assert child.returncode == -signal.SIGTERM


ASKED = """
import os
from pathlib import Path

Path(__file__).with_suffix(f".{os.getpid()}").touch()

def answer(request):
    return {"pid": os.getpid(), **request}
"""


def test_a_child_that_loads_early_answers_the_first_request_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked.py").write_text(ASKED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def loaded() -> list[int]:
        return sorted(int(f.suffix[1:]) for f in tmp_path.iterdir() if f.suffix[1:].isdigit())

    with prepare_child.loading("asked"):
        end = time.monotonic() + 30
        while not loaded():
            assert time.monotonic() < end
            time.sleep(0.01)
        (early,) = loaded()
        assert prepare_child.run({"row": 1}, "asked") == {"pid": early, "row": 1}
        other = prepare_child.run({"row": 2}, "asked")
    assert other["pid"] != early
    with prepare_child.loading("asked"):
        pass
    assert not prepare_child._early
    pids = {Path(f"/proc/{pid}") for pid in loaded()}
    assert not any(pid.exists() for pid in pids)
