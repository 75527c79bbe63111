"""Names of machines, with a resolver that hangs, fails, or is slower than who asks."""

import asyncio
import socket
import threading

import pytest

from kvloom import limits
from kvloom.clients.discovery import Endpoint
from kvloom.clients.naming import Address, NameLookup

HERE = Address(socket.AF_INET, ("127.0.0.1", 7117))
WAIT_SECONDS = 60


class Resolver:
    """Answers when it is let; counts how often it was asked."""

    def __init__(self, monkeypatch) -> None:
        self.asked = 0
        self.let = threading.Event()
        self.error: Exception | None = None
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host, port, **options):
        if options.get("flags"):
            return self._real(host, port, **options)
        self.asked += 1
        assert self.let.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return self._real("127.0.0.1", port, type=socket.SOCK_STREAM)


@pytest.fixture
def resolver(monkeypatch):
    resolver = Resolver(monkeypatch)
    yield resolver
    resolver.let.set()


def names(host="kv.test", **options):
    return NameLookup(Endpoint(host, 7117), **options)


def test_a_name_is_looked_up_once_for_a_while(resolver):
    now = [0.0]
    found = names(clock=lambda: now[0])
    resolver.let.set()
    assert found.addresses(WAIT_SECONDS) == (HERE,)
    now[0] = limits.NAME_KEPT_SECONDS - 1
    assert found.addresses(WAIT_SECONDS) == (HERE,)
    assert resolver.asked == 1
    now[0] += 2
    assert found.addresses(WAIT_SECONDS) == (HERE,)
    assert resolver.asked == 2


def test_where_nobody_was_at_the_address_it_is_looked_up_again(resolver):
    found = names()
    resolver.let.set()
    found.addresses(WAIT_SECONDS)
    found.forget()
    found.addresses(WAIT_SECONDS)
    assert resolver.asked == 2


def test_a_resolver_that_hangs_costs_what_the_caller_has_and_one_thread(resolver):
    found = names()
    before = threading.active_count()
    for _ in range(20):
        with pytest.raises(OSError, match=r"not found within 0\.001 s"):
            found.addresses(0.001)
        with pytest.raises(OSError, match=r"not found within 0\.001 s"):
            asyncio.run(found.addresses_async(0.001))
    assert resolver.asked == 1
    assert threading.active_count() == before + 1
    resolver.let.set()
    assert found.addresses(WAIT_SECONDS) == (HERE,)  # and what it finds in the end serves who asks next
    assert resolver.asked == 1


async def test_giving_up_takes_it_from_nobody_else(resolver):
    found = names()
    first, second = (asyncio.create_task(found.addresses_async(WAIT_SECONDS)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    resolver.let.set()
    assert await second == (HERE,)
    assert resolver.asked == 1


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_name_that_stands_for_nothing_is_said_so_each_time(resolver, error):
    found = names()
    resolver.error = error
    resolver.let.set()
    for _ in range(2):
        with pytest.raises(OSError, match=str(error.args[-1])):
            found.addresses(WAIT_SECONDS)
    assert resolver.asked == 2


@pytest.mark.parametrize(("host", "place"), [("127.0.0.1", ("127.0.0.1", 7117)), ("::1", ("::1", 7117, 0, 0))])
def test_an_address_asks_no_resolver(resolver, host, place):
    assert [item.place for item in names(host).addresses(0)] == [place]
    assert resolver.asked == 0


async def test_nor_from_an_event_loop(resolver):
    assert await names("127.0.0.1").addresses_async(WAIT_SECONDS) == (HERE,)
    assert resolver.asked == 0
