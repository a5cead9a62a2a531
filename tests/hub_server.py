"""A server that speaks as much of the Hugging Face hub as a push needs, in this process."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub:
    """What was sent: `files` of the last commit of each repository; `asked`, (path, token)."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.blobs: dict[str, bytes] = {}
        self.address = ""
        self.token = "hf_good"

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

        def _send(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
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
            hub.asked.append((self.path, self.headers.get("Authorization", "")))
            self._send(404, {"error": f"the stand-in has no {self.path}"})

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
