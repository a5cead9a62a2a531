"""A server that speaks as much of the Hugging Face hub as a push and a download need, in this
process.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub:
    """What was sent: `files` of the last commit of each repository; `asked`, (path, token).

    Repositories are downloaded from `files`; those in `gated` need the token. Where `cut` is set, a
    file of more bytes than it is sent in part, and the connection closed, as often as `cuts` says.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.blobs: dict[str, bytes] = {}
        self.address = ""
        self.token = "hf_good"
        self.gated: set[str] = set()
        self.revisions = {"main", COMMIT}
        self.cut, self.cuts = 0, 0
        self.ranges: list[str] = []

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and JSON for a POST."""
        self.asked.append((path, token))
        if token != f"Bearer {self.token}":
            return 401, {"error": f"Invalid username or password: {token}."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.private.setdefault(
                name, asked.get("private") or asked.get("visibility") == "private"
            )
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs"
                    if file["path"].endswith((".safetensors", ".bin"))
                    else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.address}/blobs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            return 200, self._commit(path.split("/api/models/")[1].split("/commit/")[0], body)
        return 404, {"error": f"the stand-in has no {path}"}

    def _commit(self, repo: str, body: bytes) -> dict[str, Any]:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            else:
                assert (line["key"], value["encoding"]) == ("file", "base64")
                files[value["path"]] = base64.b64decode(value["content"])
        self.files[repo] = files
        return {"commitUrl": f"{self.address}/{repo}/commit/0123abc", "commitOid": "0123abc"}

    def info(self, path: str, token: str) -> tuple[int, Any, str]:
        """Status, JSON and the hub's code of an error, for a GET of a repository's API."""
        repo, _, rest = path.removeprefix("/api/models/").partition("/revision/")
        if "/tree/" in repo:
            repo, _, rest = repo.partition("/tree/")
        if repo not in self.files:
            return 401, {"error": "Invalid username or password."}, "RepoNotFound"
        if (rest or "main") not in self.revisions:
            return 404, {"error": f"Invalid rev id: {rest}"}, "RevisionNotFound"
        files = self.files[repo]
        if "/tree/" in path:
            found = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            return 200, found, ""
        siblings = [{"rfilename": name} for name in files]
        return 200, {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []}, ""

    def file(self, path: str, token: str) -> tuple[int, bytes, str]:
        """Status, content and the hub's code of an error, for a file."""
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        if repo in self.gated and token != f"Bearer {self.token}":
            return 403, b"", "GatedRepo"
        content = self.files.get(repo, {}).get(rest.partition("/")[2])
        return (404, b"", "EntryNotFound") if content is None else (200, content, "")


COMMIT = "0123abcd" * 5
"""Of every repository."""


@contextmanager
def running() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _send(self, status: int, content: Any, code: str = "") -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            path, token = self.path.partition("?")[0], self.headers.get("Authorization", "")
            self._send(*hub.answer(path, self._body(), token))

        def do_PUT(self) -> None:
            body = self._body()
            assert self.path == f"/blobs/{hashlib.sha256(body).hexdigest()}"
            hub.blobs[self.path.removeprefix("/blobs/")] = body
            self._send(200, {})

        def do_GET(self) -> None:
            path, token = self.path.partition("?")[0], self.headers.get("Authorization", "")
            hub.asked.append((path, token))
            if "/resolve/" in path:
                self._send_file(*hub.file(path, token))
            elif path.startswith("/api/models/"):
                self._send(*hub.info(path, token))
            else:
                self._send(404, {"error": f"the stand-in has no {self.path}"})

        do_HEAD = do_GET

        def _send_file(self, status: int, content: bytes, code: str) -> None:
            start, wanted = 0, self.headers.get("Range", "")
            if wanted and self.command == "GET":
                hub.ranges.append(wanted)
                start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.command == "GET":
                ends = len(content)
                if hub.cuts and len(content) > hub.cut:
                    hub.cuts, ends = hub.cuts - 1, start + hub.cut
                self.wfile.write(content[start:ends])
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
