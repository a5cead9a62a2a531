"""Runs the app under uvicorn: the socket, slow clients, SIGTERM."""

import asyncio
import functools
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dss_jax.core import processes
from dss_jax.core.errors import UsageError
from dss_jax.run.clock import clocked
from dss_jax.serve.app import create_app
from dss_jax.serve.service import Service

log = logging.getLogger(__name__)

KEEP_ALIVE = 60
"""Seconds that a connection stays open without a request."""

LAST_REQUESTS = 0.5
"""Seconds between SIGTERM and the end of idle connections: what clients have sent by then is
answered, and the answer tells them that the connection ends."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 for clients that may be slow or mean no good: a connection that has no request at
    work and brings none, and one that does not take its answer, are cut off in bounded time.
    uvicorn bounds only the time between two requests, until the next one's first byte.
    """

    _timer: asyncio.TimerHandle | None = None
    _at_work = 0

    def __init__(self, *args: Any, patience: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience = patience
        self._asked: Any = self.config.loaded_app
        self.app: Any = self._timed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._cut_off_after(self._patience)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Idle connections get a little time: a request may be on its way."""
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
        else:
            self.loop.call_later(LAST_REQUESTS, self._shut)

    def _shut(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _cut_off_after(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _answered(self) -> None:
        """Cuts off what has not taken its answer, and else waits for another request."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._cut_off_after(KEEP_ALIVE)

    async def _timed(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._patience):
                    await send(message)
            except TimeoutError:
                self.transport.abort()

        self._stop_timer()
        self._at_work += 1
        try:
            await self._asked(scope, receive, send_in_time)
        finally:
            self._at_work -= 1
            if not self._at_work and self in self.connections:
                self._timer = self.loop.call_later(self._patience, self._answered)


class _Server(uvicorn.Server):
    """Starts the service's thread once clients can connect, and tells it when it stops."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        start_student(self._service, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stopping = True
        log.info(
            "stopping: what was taken is answered, at most %s s", self._service.limits.stop_seconds
        )
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet. Port 0: any that is free.

    Raises:
      UsageError: no such address, or the port is taken.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except (OSError, OverflowError) as error:
        made.close()
        raise UsageError(
            f"cannot listen on {host}, port {port} ({error}). Give another --port (0: any that is "
            "free), or an address of this machine as --host."
        ) from None
    return made


def url_of(listening: socket.socket) -> str:
    """For people and clients."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(service: Service) -> uvicorn.Server:
    """A server that is not started."""
    limits = service.limits
    return _Server(
        uvicorn.Config(
            create_app(service),
            http=functools.partial(PatientProtocol, patience=limits.client_seconds),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=limits.stop_seconds,
            limit_concurrency=limits.max_connections,
        ),
        service,
    )


def run(service: Service, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT, and answers what was taken until then.

    Raises:
      KeyboardInterrupt: it was SIGINT.
      Exception: the student could not be warmed up, or its thread has died.
    """
    server = make_server(service)
    main = threading.current_thread() is threading.main_thread()
    try:
        # uvicorn raises the signal again when it is done.
        with processes.handled([signal.SIGTERM] if main else [], lambda *_: None):
            server.run(sockets=[listening])
    finally:
        service.batcher.stop(service.limits.stop_seconds)
        counts = service.taken, service.answered, service.withdrawn
        log.info("stopped: %d requests taken, %d answered, %d withdrawn by their clients", *counts)
    if service.batcher.failure is not None:
        raise service.batcher.failure


def start_student(service: Service, on_failure: Callable[[], None]) -> None:
    """Starts the thread of the student, which warms it up first."""

    def first() -> None:
        start = time.perf_counter()
        with clocked("warming up"):
            service.warm_up()
        log.info("ready after %.1f s", time.perf_counter() - start)

    service.batcher.start(first, on_failure)
