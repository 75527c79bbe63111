"""The ``recorded`` fixture: the spans that this process makes, kept in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvloom import tracing


@pytest.fixture
def recorded() -> Iterator[Callable[[], Any]]:
    """The spans that have ended, while everything is recorded; skips where OpenTelemetry is not installed."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from kvloom.clients.otel import trace_with

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_with(provider)
    yield exporter.get_finished_spans
    tracing.install(None)
