"""What Prometheus is told: requests, rows, batches, the queue, the process."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meters:
    """One server's, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        PlatformCollector(registry=own)
        self._requests = Counter(
            "dss_requests", "Requests by route and status", ("route", "status"), registry=own
        )
        self._seconds = Histogram(
            "dss_request_seconds",
            "Of a request, with its body",
            ("route",),
            buckets=SECONDS,
            registry=own,
        )
        self._rows = Counter("dss_rows", "Rows that were answered", ("kind",), registry=own)
        self._batch_rows = Histogram("dss_batch_rows", "Of a batch", buckets=ROWS, registry=own)
        self._batch_seconds = Histogram(
            "dss_batch_seconds", "The student's, of a batch", buckets=SECONDS, registry=own
        )

    def watch(self, waiting: Callable[[], int], ready: Callable[[], bool]) -> None:
        """Gauges that are looked up when they are asked for."""
        Gauge("dss_waiting_rows", "In the queue", registry=self.registry).set_function(waiting)
        gauge = Gauge("dss_ready", "Whether the student answers", registry=self.registry)
        gauge.set_function(ready)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts a request that has ended; status 499: its client had gone."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, kind: str, rows: int, seconds: float) -> None:
        """Counts a batch; in the student's thread."""
        self._rows.labels(kind).inc(rows)
        self._batch_rows.observe(rows)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of them, in Prometheus' form."""
        return generate_latest(self.registry)
