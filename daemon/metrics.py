"""Prometheus metrics of one daemon, in a registry of its own: requests as they happen, tiers as they are when asked.

Whoever asks for OpenMetrics gets it, and with it one request's id (and trace, where requests are traced) per bucket of
a histogram, so that a slow one can be found in the log.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from .. import __version__
from ..clients.wire import DaemonStats
from .metrics_collector import StatsCollector

__all__ = ["METRICS_TYPE", "Metrics", "Scrape"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_EXEMPLAR_LABELS = ("request_id", "trace_id")
_LATENCY_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a scrape is answered with."""

    body: bytes
    content_type: str


class Metrics:
    """Counters that the edges bump, and a snapshot of the service at every scrape. Thread-safe."""

    def __init__(self, snapshot: Callable[[], DaemonStats]) -> None:
        disable_created_metrics()  # a series beside each counter, that nobody asks for
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "kvloom_http_requests_total", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "kvloom_http_request_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            ["method", "route"],
            buckets=_LATENCY_SECONDS,
            registry=self._registry,
        )
        self._received = Counter("kvloom_http_received_bytes_total", "Body bytes received.", registry=self._registry)
        self._sent = Counter("kvloom_http_sent_bytes_total", "Chunk and profile bytes sent.", registry=self._registry)
        self._calls = Counter("kvloom_grpc_calls_total", "Calls answered.", ["call", "status"], registry=self._registry)
        self._call_seconds = Histogram(
            "kvloom_grpc_call_duration_seconds",
            "Time from a call's metadata to the end of its answer.",
            ["call"],
            buckets=_LATENCY_SECONDS,
            registry=self._registry,
        )
        self._call_received = Counter(
            "kvloom_grpc_received_bytes_total", "Chunk and profile bytes received.", registry=self._registry
        )
        self._call_sent = Counter(
            "kvloom_grpc_sent_bytes_total", "Chunk and profile bytes sent.", registry=self._registry
        )
        build = Gauge(
            "kvloom_build_info", "Constant 1; its label is the version.", ["version"], registry=self._registry
        )
        build.labels(__version__).set(1)
        tasks = Gauge("kvloom_tasks", "Tasks of the event loop that are not done.", registry=self._registry)
        tasks.set_function(_tasks)
        self._registry.register(StatsCollector(snapshot))
        ProcessCollector(registry=self._registry)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered; ``route`` is a route's pattern, never a path a client made up."""
        verb = method if method in _METHODS else "other"
        self._requests.labels(verb, route, str(status)).inc()
        self._seconds.labels(verb, route).observe(seconds, _exemplar())

    def add_received(self, size_bytes: int) -> None:
        """A body came in."""
        self._received.inc(size_bytes)

    def add_sent(self, size_bytes: int) -> None:
        """A body went out."""
        self._sent.inc(size_bytes)

    def observe_call(self, call: str, status: str, seconds: float) -> None:
        """One gRPC call was answered."""
        self._calls.labels(call, status).inc()
        self._call_seconds.labels(call).observe(seconds, _exemplar())

    def add_call_received(self, size_bytes: int) -> None:
        """A chunk or a profile came in over gRPC."""
        self._call_received.inc(size_bytes)

    def add_call_sent(self, size_bytes: int) -> None:
        """A chunk or a profile went out over gRPC."""
        self._call_sent.inc(size_bytes)

    def render(self, accept: str = METRICS_TYPE) -> Scrape:
        """All metrics in the format that ``accept`` asks for: OpenMetrics, or else the Prometheus text format."""
        encode, content_type = choose_encoder(accept)
        return Scrape(encode(self._registry), content_type)


def _tasks() -> float:
    """Those of the loop that a scrape runs in; none where it runs in no loop."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


def _exemplar() -> dict[str, str] | None:
    """By what a request can be found again: what is bound to every line that it logs."""
    bound = structlog.contextvars.get_contextvars()
    labels = {name: str(bound[name]) for name in _EXEMPLAR_LABELS if name in bound}
    return labels or None
