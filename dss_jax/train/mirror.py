"""Files that grow (logs) in a remote folder: written locally, uploaded whole now and then.

A bucket's objects cannot be appended to.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dss_jax.core import storage

SECONDS = 30.0
"""Time between uploads."""


class Mirror:
    """Copies the files of a local folder that have changed to a remote one."""

    def __init__(self, local: Path, remote: Path) -> None:
        self._local, self._remote = local, remote
        self._last = time.monotonic()
        self._sent: dict[str, tuple[int, int]] = {}
        self._thread = ThreadPoolExecutor(1, "mirror")
        self._running: Future[None] | None = None

    def later(self) -> None:
        """Uploads in the background if the last time is long ago."""
        busy = self._running is not None and not self._running.done()
        if not busy and time.monotonic() - self._last >= SECONDS:
            self.soon()

    def soon(self) -> None:
        """Uploads in the background. Raises UsageError where the last upload failed."""
        if self._running is not None and self._running.done():
            self._running.result()
        self._last = time.monotonic()
        self._running = self._thread.submit(self._upload)

    def close(self) -> None:
        """Uploads what is left, and waits for it. Raises UsageError where an upload failed."""
        self.soon()
        self._thread.shutdown()
        assert self._running is not None
        self._running.result()

    def _upload(self) -> None:
        for file in sorted(f for f in self._local.rglob("*") if f.is_file()):
            name, stat = file.relative_to(self._local).as_posix(), file.stat()
            now = stat.st_size, stat.st_mtime_ns
            if self._sent.get(name) != now:
                with storage.explained(self._remote):
                    (self._remote / name).write_bytes(file.read_bytes())
                self._sent[name] = now
