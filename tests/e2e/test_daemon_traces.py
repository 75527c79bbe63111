"""Traces of a real daemon, received as a collector receives them."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from kvloom.clients import KvloomClient
from kvloom.clients.discovery import DaemonNote
from kvloom.clients.plan_wire import PlanQuestion
from kvloom.codec.codec import decode, encode
from kvloom.codec.layout import Layout
from kvloom.codec.level import EXACT
from kvloom.tracing import span

pytest.importorskip("opentelemetry.sdk.trace")
wire = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


class Collector:
    """Takes spans over OTLP/HTTP."""

    def __init__(self):
        spans = self.spans = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                for resource in wire.ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {item.key: item.value.string_value for item in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        spans.extend((about["service.name"], span) for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector(monkeypatch):
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def test_one_trace_follows_a_request_from_the_client_to_the_tiers(start_daemon, collector, recorded, container_bytes):
    daemon = start_daemon("--memory", "16MiB", "--ssd", "64MiB", "--traces", "otlp")
    key = os.urandom(32)
    with daemon.client() as client:
        client.put(key, container_bytes([EXACT], content_key=key))
        client.get(key, level=EXACT)  # of a whole chunk in memory the daemon leaves it to its client to verify it
        scrape = daemon.ask("GET", "/metrics", Accept="application/openmetrics-text").body.decode()
        client.get_many([key, os.urandom(32)])
    assert daemon.stop() == 0
    put, get, many = recorded()
    assert [put.name, get.name, many.name] == ["kvloom PutChunk", "kvloom GetChunk", "kvloom GetChunks"]
    several = many.context.trace_id.to_bytes(16, "big")
    asked = [span for _, span in collector.spans if (span.trace_id, span.name) == (several, "GET /chunks/{key}")]
    assert [span.parent_span_id for span in asked] == [many.context.span_id.to_bytes(8, "big")] * 2
    for mine, names in (
        (put, ["PUT /chunks/{key}", "service.put", "codec.verify", "tier.put"]),
        (get, ["GET /chunks/{key}", "service.get", "tier.get", "codec.verify"]),
    ):
        trace_id = mine.context.trace_id.to_bytes(16, "big")
        theirs = {span.name: span for service, span in collector.spans if span.trace_id == trace_id}
        assert set(theirs) == set(names)
        assert theirs[names[0]].parent_span_id == mine.context.span_id.to_bytes(8, "big")
        assert theirs[names[1]].parent_span_id == theirs[names[0]].span_id
        assert f'trace_id="{trace_id.hex()}"' in scrape
    above = {"tier.get": "service.get", "codec.verify": "tier.get"}
    for name, parent in above.items():
        assert theirs[name].parent_span_id == theirs[parent].span_id
    assert {service for service, _ in collector.spans} == {"kvloom"}
    said = {item.key for _, span in collector.spans for item in span.attributes}
    assert said <= {"http.response.status_code", "tenant", "ack", "tier", "size_bytes", "outcome", "chunks"}


def test_one_trace_has_an_applications_request_with_its_plan_its_reads_and_the_codec(start_daemon, collector, recorded):
    daemon = start_daemon("--memory", "16MiB", "--ssd", "0", "--traces", "otlp")
    layout, key = Layout.uniform(layers=2, kv_heads=1, head_dim=16), os.urandom(32)
    tensors = np.zeros((2, 1, 8, 16), layout.dtype.numpy)
    with daemon.client() as client:
        client.put(key, encode(tensors, tensors, layout=layout, levels=[EXACT], content_key=key))
        recorded()
        with span("answer"):
            client.plan(PlanQuestion("engine", keys=(key.hex(),), prompt_tokens=8))
            decode(client.get(key, level=EXACT).value.data)
    assert daemon.stop() == 0
    mine = recorded()[-4:]
    assert sorted(item.name for item in mine) == ["answer", "codec.decode", "kvloom AskPlan", "kvloom GetChunk"]
    (trace_id,) = {item.context.trace_id.to_bytes(16, "big") for item in mine}
    theirs = {item.name for _, item in collector.spans if item.trace_id == trace_id}
    assert {"POST /plan", "service.plan", "GET /chunks/{key}", "service.get", "tier.get", "codec.verify"} <= theirs


def test_a_grpc_call_continues_the_trace_too(start_daemon, collector, recorded):
    pytest.importorskip("grpc")
    daemon = start_daemon("--memory", "16MiB", "--ssd", "0", "--grpc-port", "0", "--traces", "otlp")
    port = DaemonNote.read(daemon.data_dir).grpc_port
    with KvloomClient(f"grpc://127.0.0.1:{port}", data_dir=daemon.data_dir) as client:
        client.get(os.urandom(32))
    assert daemon.stop() == 0
    (asked,) = recorded()
    (answered,) = [span for _, span in collector.spans if span.name == "grpc get_chunk"]
    assert answered.parent_span_id == asked.context.span_id.to_bytes(8, "big")


def test_a_collector_that_is_away_holds_up_nobody(start_daemon, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    daemon = start_daemon("--memory", "16MiB", "--ssd", "0", "--traces", "otlp")
    assert daemon.ask("GET", "/stats").status == 200
    assert daemon.stop() == 0
