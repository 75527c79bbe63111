"""Recording spans with OpenTelemetry (the ``[otel]`` extra).

An application that uses a client calls :func:`trace_with` once, with its own tracer provider or the global one; the
daemon does so by itself where its setting ``traces`` says where to. Trace and span ids go along in the ``traceparent``
header (W3C Trace Context), so one trace has both sides of a request.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, StatusCode, Tracer, TracerProvider, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .. import __version__, tracing
from ..tracing import Role

__all__ = ["trace_with"]

_KINDS: Final = {Role.INTERNAL: SpanKind.INTERNAL, Role.CLIENT: SpanKind.CLIENT, Role.SERVER: SpanKind.SERVER}
_HEADERS: Final = ("traceparent", "tracestate")


def trace_with(provider: TracerProvider | None = None) -> None:
    """Record kvloom's spans in this process with ``provider``, else the global one."""
    tracing.install(_OtelTracer((provider or trace.get_tracer_provider()).get_tracer("kvloom", __version__)))


class _Recorded:
    """A span of OpenTelemetry as kvloom's rooms see it."""

    __slots__ = ("_span",)

    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else ""

    def set(self, name: str, value: tracing.Value) -> None:
        self._span.set_attribute(name, value)

    def fail(self, reason: str) -> None:
        self._span.set_status(StatusCode.ERROR, reason)


class _OtelTracer:
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    def span(
        self, name: str, role: Role, carrier: Mapping[str, str] | None, attributes: Mapping[str, tracing.Value]
    ) -> AbstractContextManager[tracing.Span]:
        return self._recording(name, role, carrier, attributes)

    def propagated(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier

    @contextmanager
    def _recording(
        self, name: str, role: Role, carrier: Mapping[str, str] | None, attributes: Mapping[str, tracing.Value]
    ) -> Iterator[tracing.Span]:
        context = None
        if carrier is not None:
            given = {header: carrier[header] for header in _HEADERS if header in carrier}
            context = self._propagator.extract(given)
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=_KINDS[role],
            attributes=dict(attributes),
            record_exception=False,  # a traceback would carry values; the log has it by the request's id
        ) as span:
            yield _Recorded(span)
