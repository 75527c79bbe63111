"""The daemon's traces on their way out: OpenTelemetry's SDK, set up where the setting ``traces`` asks for it.

Endpoint, headers, sampling and limits are the ``OTEL_*`` variables' business, as that standard has them; spans are sent
in batches by a thread of the SDK, and dropped where nobody takes them.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .. import __version__, tracing
from ..errors import MissingDependency
from .settings import TraceExport

__all__ = ["exporting_traces"]


@asynccontextmanager
async def exporting_traces(export: TraceExport) -> AsyncIterator[None]:
    """Record and send spans while the context lasts; :class:`MissingDependency` where the extra is not installed."""
    if export is TraceExport.OFF:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from ..clients.otel import trace_with
    except ImportError as error:
        raise MissingDependency(f"traces {export} needs {error.name or error}: pip install 'kvloom[otel]'") from error
    resource = Resource.create({"service.name": "kvloom", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace_with(provider)
    try:
        yield
    finally:
        tracing.install(None)
        await asyncio.to_thread(provider.shutdown)
