"""A Google Cloud Storage in memory: what tensorstore's gcs driver and gcsfs ask of its JSON API.

https://cloud.google.com/storage/docs/json_api
"""

import contextlib
import email
import itertools
import json
import threading
from base64 import b64encode
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class FakeGcs:
    """Listens on a local port until `close`.

    Attributes:
      objects: "bucket/name" -> content.
      asked: (method, object, authorization header or None) of each request.
      forbidden: buckets that may not be read.
      missing: buckets that are not there; all others are.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.forbidden: set[str] = set()
        self.missing: set[str] = set()
        self.sessions: dict[str, tuple[str, bytearray]] = {}
        self.numbers = itertools.count(1)
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, key: str, content: bytes) -> None:
        """Stores an object, as a new generation."""
        self.objects[key] = content
        self.generations[key] = next(self.numbers)

    def upload(self, folder: Path, where: str) -> None:
        """All files below a local folder to "bucket/path"."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(f"{where}/{file.relative_to(folder)}", file.read_bytes())

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
        bucket, name, query = self._target()
        if self._refused("GET", bucket, name):
            return
        if name is None:
            self._json(self._list(bucket, query) if "/o" in self.path else {"name": bucket})
            return
        key = f"{bucket}/{name}"
        with self.gcs.lock:
            content, generation = self.gcs.objects.get(key), self._generation(key)
        if content is None:
            self._answer(404, b'{"error": {"code": 404, "message": "No such object"}}')
        elif query.get("ifGenerationNotMatch") == str(generation):
            self._answer(304, b"")
        elif query.get("alt") != "media":
            self._json(self._about(key))
        elif wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last), len(content) - 1) if last else len(content) - 1
            start = int(first) if first else len(content) - int(last)
            span = f"bytes {start}-{end}/{len(content)}"
            self._answer(206, content[start : end + 1], {"Content-Range": span}, generation)
        else:
            self._answer(200, content, generation=generation)

    def do_POST(self) -> None:
        if self.path.startswith("/session/"):
            self.do_PUT()
            return
        body = self._body()
        if self.path.startswith("/batch/"):
            self._batch(body)
            return
        bucket, name, query = self._target()
        if "/rewriteTo/" in self.path:
            source, _, target = urlsplit(self.path).path.partition("/rewriteTo/b/")
            name = unquote(source.rpartition("/o/")[2])
            to = unquote(target.replace("/o/", "/", 1))
            self.gcs.put(to, self.gcs.objects[f"{bucket}/{name}"])
            self._json({"done": True, "resource": self._about(to)})
            return
        name, content = query.get("name"), body
        if query["uploadType"] == "multipart":
            # A part of JSON, then the content: each after an empty line, and before a boundary.
            _, about, content = (
                body.split(b"\n\n", 2) if b"\r\n\r\n" not in body else body.split(b"\r\n\r\n", 2)
            )
            name = json.JSONDecoder().raw_decode(about.decode())[0]["name"]
            content = content[: content.rindex(b"\n--")].removesuffix(b"\r")
        elif query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
        key = f"{bucket}/{name}"
        if self._refused("POST", bucket, name):
            return
        if query["uploadType"] == "resumable":
            session = str(next(self.gcs.numbers))
            self.gcs.sessions[session] = (key, bytearray())
            self._answer(200, b"", {"Location": f"{self.gcs.url}/session/{session}"})
            return
        with self.gcs.lock:
            wanted = query.get("ifGenerationMatch")
            if wanted is not None and int(wanted) != self._generation(key):
                self._answer(412, b"{}")
                return
            self.gcs.put(key, content)
        self._json(self._about(key))

    def do_PUT(self) -> None:
        session, body = self.path.rpartition("/")[2].partition("?")[0], self._body()
        key, content = self.gcs.sessions[session]
        content += body
        span = self.headers.get("Content-Range", "bytes 0-0/0")
        if span.endswith("/*"):
            self._answer(308, b"", {"Range": f"bytes=0-{len(content) - 1}"})
            return
        self.gcs.put(key, bytes(content))
        self._json(self._about(key))

    def do_DELETE(self) -> None:
        bucket, name, _ = self._target()
        if not self._refused("DELETE", bucket, name):
            self._answer(self._delete(f"{bucket}/{name}"), b"")

    def _delete(self, key: str) -> int:
        with self.gcs.lock:
            return 404 if self.gcs.objects.pop(key, None) is None else 204

    def _batch(self, body: bytes) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        answers = []
        for part in email.message_from_bytes(head + body).get_payload():
            path = part.get_payload().split()[1]
            bucket, _, name = urlsplit(path).path.partition("/b/")[2].partition("/o/")
            status = self._delete(f"{bucket}/{unquote(name)}")
            answers.append(
                f"--X\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} X\r\n"
                f"Content-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(answers) + "--X--\r\n"
        self._answer(200, text.encode(), {"Content-Type": "multipart/mixed; boundary=X"})

    def _target(self) -> tuple[str, str | None, dict[str, str]]:
        """Bucket, object or None, and the query."""
        url = urlsplit(self.path)
        bucket, _, rest = url.path.partition("/b/")[2].partition("/o")
        query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        return unquote(bucket), unquote(rest[1:]) or None, query

    def _list(self, bucket: str, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names, folders = [], set()
        with self.gcs.lock:
            keys = sorted(self.gcs.objects)
        for key in keys:
            name = key.removeprefix(f"{bucket}/")
            if name == key or not name.startswith(prefix):
                continue
            if not query.get("startOffset", "") <= name < (query.get("endOffset") or chr(1 << 20)):
                continue
            head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
            if found:
                folders.add(prefix + head + found)
            else:
                names.append(key)
        return {
            "kind": "storage#objects",
            "items": [self._about(k) for k in names],
            "prefixes": sorted(folders),
        }

    def _generation(self, key: str) -> int:
        return self.gcs.generations.get(key, 1) if key in self.gcs.objects else 0

    def _about(self, key: str) -> dict:
        bucket, _, name = key.partition("/")
        content = self.gcs.objects[key]
        now = "2024-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "generation": str(self._generation(key)),
            "timeCreated": now,
            "updated": now,
            "md5Hash": b64encode(md5(content).digest()).decode(),
            "etag": md5(content).hexdigest(),
            "storageClass": "STANDARD",
            "contentType": "application/octet-stream",
        }

    def _refused(self, method: str, bucket: str, name: str | None) -> bool:
        """Notes a request, and answers it where the bucket is closed or not there."""
        key = f"{bucket}/{name or ''}"
        self.gcs.asked.append((method, key, self.headers.get("Authorization")))
        if bucket in self.gcs.forbidden:
            self._answer(403, b'{"error": {"code": 403, "message": "no access"}}')
        elif bucket in self.gcs.missing:
            text = "The specified bucket does not exist."
            self._answer(404, json.dumps({"error": {"code": 404, "message": text}}).encode())
        else:
            return False
        return True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, value: dict) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, generation: int = 1
    ) -> None:
        self.send_response(status)
        for name, value in {"x-goog-generation": str(generation), **(headers or {})}.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        # A client that looks at many things at once may have gone when it has found one.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            if status not in (204, 304):
                self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
