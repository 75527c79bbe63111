"""Calls and connections of tenants over gRPC, counted beside those of HTTP."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.daemon.admission import Admission, TenantShare
from kvloom.daemon.grpc_shares import GrpcShares
from kvloom.errors import Overloaded, TenantOverloaded


def make(**share: int) -> tuple[Admission, GrpcShares]:
    admission = Admission(share_of=lambda tenant: TenantShare(**share))
    return admission, GrpcShares(admission)


def test_a_connection_counts_once_however_many_calls_come_over_it():
    admission, shares = make(connections=2)
    with shares.calling("a", "here"), shares.calling("a", "here"), shares.calling("a", "there"):
        assert admission.connections == 2
        with pytest.raises(TenantOverloaded, match="2 connections, its limit is 2"), shares.calling("a", "elsewhere"):
            pass
        with shares.calling("b", "here"):  # two tenants over one connection are one connection of each
            assert admission.connections == 3
    assert admission.connections == 0


def test_calls_have_a_limit_and_come_back_whatever_happens():
    _, shares = make(requests=1)

    def fail() -> None:
        with shares.calling("a", "here"):
            with pytest.raises(TenantOverloaded, match="1 calls of this tenant"), shares.calling("a", "here"):
                pass
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()


def test_a_refused_call_leaves_nothing_behind():
    admission, shares = make(connections=1)
    with shares.calling("a", "here"):
        for _ in range(3):
            with pytest.raises(TenantOverloaded), shares.calling("a", "there"):
                pass
    assert admission.connections == 0
    with shares.calling("a", "there"):
        assert admission.connections == 1


def test_connections_in_all_are_those_of_both_edges(monkeypatch):
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 2)
    admission, shares = make()
    admission.connect(None)
    with shares.calling("a", "here"), pytest.raises(Overloaded, match="2 connections"), shares.calling("a", "there"):
        pass


def test_so_many_refused_calls_are_read_on_from_and_no_more(monkeypatch):
    monkeypatch.setattr(limits, "GRPC_LINGERING_MAX", 1)
    _, shares = make()
    with shares.lingering() as first, shares.lingering() as second:
        assert (first, second) == (True, False)
    with shares.lingering() as third:
        assert third


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=30))
def test_connections_are_what_calls_are_under_way_over(calls):
    admission, shares = make()
    with ExitStack() as held:
        for tenant, peer in calls:
            held.enter_context(shares.calling(tenant, peer))
        assert admission.connections == len(set(calls))
    assert admission.connections == 0
