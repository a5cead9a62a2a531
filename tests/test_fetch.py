"""`dss tasks fetch`: the authors' archive from a stand-in of their server on this machine."""

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from dss_jax.cli.main import main
from dss_jax.core.paths import NEW
from dss_jax.core.registry import load_task
from dss_jax.data import release, rows, sources

ROW = {"id": "1", "question": "Where do fish live?", "choices": ["a", "b", "c", "d", "sea"]}
FILES = {
    "datasets/cqa/cqa_train.json": json.dumps({**ROW, "answer": "sea"}) + "\n",
    "datasets/cqa/cqa_test.json": json.dumps({**ROW, "answer": "sea"}) + "\n",
    "datasets/cqa/llm/train_CoT_0.json": json.dumps(["Fish swim. So the answer is (e) sea."]),
    "datasets/cqa/llm/test_CoT_0.json": json.dumps(["Fish swim. So the answer is (e) sea."]),
    "datasets/cqa/.DS_Store": "x",
    "datasets/svamp/svamp_train.json": "x",
    "__MACOSX/datasets/cqa/._cqa_train.json": "x",
}


class Server:
    """Serves one file; the first `cut` bytes only, once, where that is not 0."""

    def __init__(self) -> None:
        self.content, self.address, self.cut = b"", "", 0
        self.ranges: list[str | None] = []


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    own = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            own.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if start >= len(own.content):
                return self.send_error(416)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(own.content) - start))
            self.end_headers()
            ends, own.cut = own.cut or None, 0
            self.wfile.write(own.content[start:ends])

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        own.address = f"http://127.0.0.1:{serving.server_port}/datasets.zip"
        monkeypatch.setattr(release, "ARCHIVE", own.address)
        Thread(target=serving.serve_forever, daemon=True).start()
        serve(own, zipped(FILES), monkeypatch)
        yield own
        serving.shutdown()


def zipped(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def serve(server: Server, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = content
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setattr(release, "GIT_BLOB", digest)


def fetched(*more: str) -> int:
    return main(["tasks", "fetch", "cqa", *more])


def test_a_task_is_fetched_and_then_found_without_a_flag(server: Server, capsys) -> None:
    assert sources.available_splits(load_task("cqa")) == ()
    assert fetched() == 0
    assert "next: dss tasks stats cqa\n" in capsys.readouterr().out
    names = {
        f.relative_to(sources.fetched_folder()).as_posix()
        for f in sources.fetched_folder().rglob("*.*")
    }
    assert names == {
        n.removeprefix("datasets/") for n in FILES if n.startswith("datasets/cqa/c")
    } | {"cqa/llm/train_CoT_0.json", "cqa/llm/test_CoT_0.json"}
    (example,) = rows.examples(load_task("cqa"), "test")
    assert (example.label, example.teacher_label, example.rationale) == ("sea", "sea", "Fish swim.")
    # Nothing is overwritten; another task needs no second download.
    assert fetched() == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["tasks", "fetch", "svamp", "--data_dir", "elsewhere"]) == 0
    assert Path("elsewhere/svamp/svamp_train.json").read_text() == "x"
    assert server.ranges == [None]


def test_a_download_goes_on_where_it_was_cut(server: Server, capsys) -> None:
    server.cut = 400
    assert fetched() == 2
    assert "cannot fetch the authors' release" in capsys.readouterr().err
    assert not sources.fetched_folder().exists()
    assert fetched() == 0
    assert server.ranges == [None, "bytes=400-"]
    # One that was killed before the digest was looked at.
    (file,) = Path("cache/downloads").glob("*.zip")
    file.rename(f"{file}{NEW}")
    assert fetched("--data_dir", "again") == 0


def test_another_file_is_refused_and_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    good = server.content
    server.content = good.replace(b"Fish", b"Figs")
    assert fetched() == 2
    assert "is not the authors' file of commit ef94426" in capsys.readouterr().err
    assert not list(Path("cache/downloads").glob("*.zip*"))
    server.content = good
    assert fetched() == 0


def test_a_full_disk_is_no_network_that_is_missing(server: Server, capsys) -> None:
    partial = Path(f"cache/downloads/{release.GIT_BLOB[:12]}-datasets.zip{NEW}")
    partial.parent.mkdir(parents=True)
    partial.symlink_to("/dev/full")
    assert fetched() == 2
    said = capsys.readouterr().err
    assert f"{partial} could not be written: No space left on device" in said
    assert "cannot fetch" not in said


def test_a_file_of_the_users_own_is_never_removed(server: Server, capsys) -> None:
    Path(f"mine.zip{NEW}").write_text("another")
    assert fetched("--archive", f"mine.zip{NEW}") == 2
    assert "is not the authors' file" in capsys.readouterr().err
    assert Path(f"mine.zip{NEW}").read_text() == "another"


@pytest.mark.parametrize(
    "name", ["datasets/cqa/../../x", "datasets/cqa//etc/x", "datasets/cqa/a\\b"]
)
def test_names_that_lead_out_are_refused(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    serve(server, zipped({**FILES, name: "x"}), monkeypatch)
    assert fetched() == 2
    assert "which would lie outside of its folder" in capsys.readouterr().err
    assert not list(sources.fetched_folder().iterdir())


def test_links_and_bombs_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        info = zipfile.ZipInfo("datasets/cqa/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    serve(server, content.getvalue(), monkeypatch)
    assert fetched() == 2
    assert "has a link, datasets/cqa/link" in capsys.readouterr().err
    serve(server, zipped(FILES), monkeypatch)
    monkeypatch.setattr(release, "MOST_BYTES", 100)
    assert fetched() == 2
    assert "it is no such release" in capsys.readouterr().err
    serve(server, b"no zip", monkeypatch)
    assert fetched() == 2
    assert "cannot be read as a zip file" in capsys.readouterr().err
    assert not list(sources.fetched_folder().iterdir())


def test_without_a_network_a_file_does(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(release, "ARCHIVE", "http://127.0.0.1:9/datasets.zip")
    assert fetched() == 2
    assert "and give --archive FILE" in capsys.readouterr().err
    (tmp_path / "own.zip").write_bytes(server.content)
    assert fetched("--archive", "own.zip") == 0
    assert fetched("--archive", "nowhere.zip", "--data_dir", "d") == 2
    assert "there is no file nowhere.zip" in capsys.readouterr().err
    assert main(["tasks", "fetch", "word_problems"]) == 2
    assert "is not of the authors' release" in capsys.readouterr().err
    assert fetched("--data_dir", "gs://a/b") == 2
    assert "not to gs://a/b" in capsys.readouterr().err


def test_what_is_missing_names_the_command(server: Server, capsys) -> None:
    assert main(["tasks", "stats", "cqa"]) == 2
    assert "dss tasks fetch cqa fetches the authors' release" in capsys.readouterr().err
