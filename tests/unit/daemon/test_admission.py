import asyncio

import pytest

from kvloom import limits
from kvloom.daemon.admission import Admission, Phase, TenantShare
from kvloom.errors import Overloaded, TenantOverloaded


async def test_only_a_ready_daemon_lets_requests_in():
    admission = Admission()
    with pytest.raises(Overloaded, match="starting"), admission.enter("a"):
        pass
    admission.open()
    with admission.enter("a"):
        assert admission.requests == 1
    admission.drain()
    assert admission.phase is Phase.DRAINING
    with pytest.raises(Overloaded, match="draining"), admission.enter("a"):
        pass


async def test_bytes_past_the_budget_are_refused_and_both_numbers_named():
    admission = Admission(inflight_bytes_max=100)
    says = "needs 31 bytes beside 70 in flight, the limit is 100"
    with admission.reserve(70, "a"), pytest.raises(Overloaded, match=says), admission.reserve(31, "a"):
        pass
    with admission.reserve(100, "a"):
        assert admission.inflight_bytes == 100
    assert admission.inflight_bytes == 0


async def test_a_failed_request_gives_back_its_place_and_bytes():
    admission = Admission(inflight_bytes_max=10)
    admission.open()
    with pytest.raises(ZeroDivisionError), admission.enter("a"), admission.reserve(10, "a"):
        1 / 0  # noqa: B018
    assert (admission.requests, admission.inflight_bytes) == (0, 0)


async def test_empty_waits_for_the_last_request():
    admission = Admission()
    admission.open()
    with admission.enter("a"):
        admission.drain()
        waiting = asyncio.create_task(admission.empty())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


def shares(tenant):
    return TenantShare(inflight_bytes=60, requests=2, connections=1) if tenant == "small" else TenantShare()


async def test_a_tenant_past_its_share_is_refused_and_others_are_not():
    admission = Admission(inflight_bytes_max=100, share_of=shares)
    admission.open()
    with admission.reserve(50, "small"):
        says = "needs 11 bytes beside 50 of this tenant in flight, its limit is 60"
        with pytest.raises(TenantOverloaded, match=says), admission.reserve(11, "small"):
            pass
        with (
            admission.reserve(50, "large"),
            pytest.raises(Overloaded, match="in flight, the limit is 100") as caught,
            admission.reserve(10, "small"),
        ):
            pass
        assert not isinstance(caught.value, TenantOverloaded)
    with admission.enter("small"), admission.enter("small"):
        says = "2 requests of this tenant are inside, its limit is 2"
        with pytest.raises(TenantOverloaded, match=says), admission.enter("small"):
            pass
        with admission.enter("large"):
            assert admission.requests == 3
    admission.connect("small")
    with pytest.raises(TenantOverloaded, match="this tenant has 1 connections, its limit is 1"):
        admission.connect("small")
    admission.connect("large")
    for tenant in ("small", "large"):
        admission.disconnect(tenant)
    admission.connect("small")
    assert (TenantOverloaded.http_status, Overloaded.http_status) == (429, 503)


async def test_nothing_is_kept_of_a_tenant_that_has_nothing_inside():
    admission = Admission()
    admission.open()
    for number in range(100):
        admission.connect(f"t{number}")
        with admission.enter(f"t{number}"), admission.reserve(1, f"t{number}"):
            assert len(admission._held) == 1
        admission.disconnect(f"t{number}")
    assert not admission._held


async def test_requests_inside_are_bounded_in_all(monkeypatch):
    monkeypatch.setattr(limits, "REQUESTS_INFLIGHT_MAX", 1)
    admission = Admission()
    admission.open()
    says = "1 requests are inside, the limit is 1"
    with admission.enter("a"), pytest.raises(Overloaded, match=says), admission.enter("b"):
        pass
