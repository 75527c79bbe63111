import subprocess
import sys

import pytest

from kvloom import tracing

pytest.importorskip("opentelemetry.sdk.trace")


def test_a_daemon_that_records_nothing_loads_nothing_for_it():
    code = "import sys, kvloom.daemon.server, kvloom.clients.client; print('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_nothing_is_recorded_until_somebody_asks():
    with tracing.span("a", tier="ssd") as one, tracing.span("b") as other:
        one.set("size", 5)
        one.fail("it did not")
    assert one is other
    assert (one.trace_id, tracing.propagated()) == ("", {})
    with pytest.raises(ValueError, match="through"), tracing.span("c"):
        raise ValueError("through")


@tracing.traced("double")
def double(number, *, twice=False):
    """Two of them."""
    return number * (4 if twice else 2)


@tracing.traced_async("later")
async def later(number):
    return double(number)


async def test_decorated_functions_are_what_they_were(recorded):
    assert (double(2), double(2, twice=True), double.__doc__) == (4, 8, "Two of them.")
    assert await later(3) == 6
    assert [span.name for span in recorded()] == ["double", "double", "double", "later"]
    inner, outer = recorded()[-2:]
    assert inner.parent.span_id == outer.context.span_id
    tracing.install(None)
    assert (double(2), await later(2)) == (4, 4)
    assert len(recorded()) == 4


def test_a_request_continues_the_trace_of_whoever_sent_it(recorded):
    with tracing.span("asking", role=tracing.Role.CLIENT) as asking:
        headers = {name.title(): value for name, value in tracing.propagated().items()}
    assert set(headers) == {"Traceparent"}
    with tracing.span("answering", role=tracing.Role.SERVER, carrier={"traceparent": headers["Traceparent"]}) as answer:
        answer.set("outcome", "Hit")
        assert answer.trace_id == asking.trace_id
    client, server = recorded()
    assert server.parent.span_id == client.context.span_id
    assert server.attributes["outcome"] == "Hit"


@pytest.mark.parametrize("header", ["", "00-zz-1-01", "junk" * 1000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_header_that_names_no_trace_begins_a_new_one(recorded, header):
    with tracing.span("answering", role=tracing.Role.SERVER, carrier={"traceparent": header}) as answering:
        assert len(answering.trace_id) == 32
    assert recorded()[0].parent is None


def test_a_failure_is_marked_and_goes_through(recorded):
    with pytest.raises(ValueError, match="no"), tracing.span("a"):
        raise ValueError("no")
    with tracing.span("b") as span:
        span.fail("status 500")
    assert [span.status.is_ok for span in recorded()] == [False, False]
    assert not recorded()[0].events


def test_the_codec_marks_its_work(recorded, rng):
    import numpy as np

    from kvloom.codec.codec import decode, encode
    from kvloom.codec.layout import KvDtype, Layout, Rope
    from kvloom.codec.level import EXACT

    layout = Layout.uniform(layers=1, kv_heads=1, head_dim=8, dtype=KvDtype.FLOAT32, rope=Rope((1.0, 0.1, 0.01, 0.001)))
    keys = [rng.standard_normal((1, 5, 8)).astype(np.float32)]
    with tracing.span("prefill"):
        decode(encode(keys, keys, layout=layout, levels=[EXACT]))
    assert [span.name for span in recorded()] == ["codec.encode", "codec.decode", "prefill"]
