"""A Google Cloud Storage in memory that answers what tensorstore's gcs driver asks."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class FakeGcs:
    """Listens on a local port until `close`.

    Attributes:
      objects: "bucket/name" -> content.
      asked: (method, object, authorization header or None) of each request.
      forbidden: buckets that may not be read.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.forbidden: set[str] = set()
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def upload(self, folder: Path, where: str) -> None:
        """All files below a local folder to "bucket/path"."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.objects[f"{where}/{file.relative_to(folder)}"] = file.read_bytes()

    def download(self, where: str, folder: Path) -> None:
        """All objects below "bucket/path" to a local folder."""
        for name, content in self.objects.items():
            if name.startswith(f"{where}/"):
                file = folder / name.removeprefix(f"{where}/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    gcs: FakeGcs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        # /storage/v1/b/BUCKET/o/NAME?alt=media
        parts = urlsplit(self.path).path.split("/", 6)
        bucket, name = parts[4], unquote(parts[6])
        self._note("GET", f"{bucket}/{name}")
        content = self.gcs.objects.get(f"{bucket}/{name}")
        if bucket in self.gcs.forbidden:
            self._answer(403, b"no access")
        elif content is None:
            self._answer(404, b"")
        elif wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last), len(content) - 1) if last else len(content) - 1
            start = int(first) if first else len(content) - int(last)
            span = f"bytes {start}-{end}/{len(content)}"
            self._answer(206, content[start : end + 1], {"Content-Range": span})
        else:
            self._answer(200, content)

    def do_POST(self) -> None:
        # /upload/storage/v1/b/BUCKET/o?uploadType=media&name=NAME
        url = urlsplit(self.path)
        key = f"{url.path.split('/')[5]}/{parse_qs(url.query)['name'][0]}"
        self._note("POST", key)
        self.gcs.objects[key] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, json.dumps({"name": key, "generation": "1"}).encode())

    def _note(self, method: str, key: str) -> None:
        self.gcs.asked.append((method, key, self.headers.get("Authorization")))

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"x-goog-generation": "1", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
