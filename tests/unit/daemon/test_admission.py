import asyncio

import pytest

from kvloom.daemon.admission import Admission, Phase
from kvloom.errors import Overloaded


async def test_only_a_ready_daemon_lets_requests_in():
    admission = Admission()
    with pytest.raises(Overloaded, match="starting"), admission.enter():
        pass
    admission.open()
    with admission.enter():
        assert admission.requests == 1
    admission.drain()
    assert admission.phase is Phase.DRAINING
    with pytest.raises(Overloaded, match="draining"), admission.enter():
        pass


async def test_bytes_past_the_budget_are_refused_and_both_numbers_named():
    admission = Admission(inflight_bytes_max=100)
    says = "needs 31 bytes beside 70 in flight, the limit is 100"
    with admission.reserve(70), pytest.raises(Overloaded, match=says), admission.reserve(31):
        pass
    with admission.reserve(100):
        assert admission.inflight_bytes == 100
    assert admission.inflight_bytes == 0


async def test_a_failed_request_gives_back_its_place_and_bytes():
    admission = Admission(inflight_bytes_max=10)
    admission.open()
    with pytest.raises(ZeroDivisionError), admission.enter(), admission.reserve(10):
        1 / 0  # noqa: B018
    assert (admission.requests, admission.inflight_bytes) == (0, 0)


async def test_empty_waits_for_the_last_request():
    admission = Admission()
    admission.open()
    with admission.enter():
        admission.drain()
        waiting = asyncio.create_task(admission.empty())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
