"""Deadlines, tries and the budget they are paid from, by a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.clients import protocol, upkeep
from kvloom.clients.patience import Attempts, Deadline, RetryBudget, RetryPolicy, find_lookup_seconds
from kvloom.errors import (
    ConfigError,
    DaemonSilent,
    DaemonUnavailable,
    InvalidRequest,
    KvloomError,
    NotFound,
    Overloaded,
    StorageUnavailable,
    TenantOverloaded,
)

KEY = bytes(32)
DELETE = protocol.DeleteChunk(KEY)
READ = protocol.GetChunk(KEY)
PIN = upkeep.PinChunks((KEY,), 10.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(operation=DELETE, *, policy=None, budget=None, clock=None, chance=1.0, **more) -> Attempts:
    return Attempts(
        operation,
        policy or RetryPolicy(),
        budget or RetryBudget(),
        clock=clock or Clock(),
        chance=lambda: chance,
        **more,
    )


def asking_for(seconds: float) -> KvloomError:
    error = Overloaded("full")
    error.retry_seconds = seconds
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (DaemonUnavailable("no"), True),
        (Overloaded("full"), True),
        (TenantOverloaded("full"), True),
        (StorageUnavailable("away"), True),
        (DaemonSilent("silent"), False),
        (NotFound("no"), False),
        (InvalidRequest("no"), False),
        (KvloomError("no"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, again):
    assert (attempts().wait_after(error) is not None) is again


def test_tries_are_counted_and_waits_grow():
    call = attempts(policy=RetryPolicy(tries_max=4))
    waits = [call.wait_after(DaemonUnavailable("no")) for _ in range(5)]
    first = limits.RETRY_BACKOFF_SECONDS
    assert waits == [first, 2 * first, 4 * first, None, None]


def test_a_pin_is_not_tried_again():
    assert attempts(PIN).wait_after(DaemonUnavailable("no")) is None


def test_the_daemon_says_how_long_to_wait_and_a_read_does_not_wait_so_long():
    assert attempts(chance=0.0).wait_after(asking_for(1.0)) == 1.0
    assert attempts(chance=1.0).wait_after(asking_for(1.0)) == 1.5
    assert attempts(READ).wait_after(asking_for(1.0)) is None
    assert attempts(chance=0.0).wait_after(asking_for(3600.0)) is None


def test_no_try_begins_after_the_end():
    clock = Clock()
    call = attempts(clock=clock, policy=RetryPolicy(tries_max=50, seconds_max=2.0))
    clock.now += 1.99
    assert call.wait_after(DaemonUnavailable("no")) is None
    bounded = attempts(clock=clock, deadline=Deadline(clock.now + 0.01, clock))
    assert bounded.wait_after(DaemonUnavailable("no")) is None


@given(st.lists(st.booleans(), max_size=400))
def test_further_tries_are_at_most_the_budget_and_a_tenth_of_the_calls(calls):
    budget, made, tried = RetryBudget(), 0, 0
    for fails in calls:
        call = attempts(budget=budget)
        made += 1
        while fails and call.wait_after(DaemonUnavailable("no")) is not None:
            tried += 1
    assert tried <= limits.RETRY_TOKENS_MAX + made * limits.RETRY_TOKENS_PER_CALL + 1e-6


def test_a_daemon_that_is_gone_soon_costs_one_try_per_call_and_one_that_came_back_more_again():
    budget = RetryBudget()
    while budget.take():
        pass
    assert attempts(budget=budget).wait_after(DaemonUnavailable("no")) is None
    for _ in range(10):
        attempts(budget=budget)
    assert attempts(budget=budget).wait_after(DaemonUnavailable("no")) is not None


def test_a_deadline_is_what_is_left_and_then_an_error():
    clock = Clock()
    deadline = Deadline(clock.now + 5, clock)
    assert deadline.left(2.0) == 2.0
    clock.now += 4
    assert deadline.left(2.0) == 1.0
    clock.now += 1
    with pytest.raises(TimeoutError):
        deadline.left(2.0)


def test_the_time_of_a_lookup_is_given_found_or_the_default():
    assert find_lookup_seconds(environ={}) == limits.LOOKUP_SECONDS_DEFAULT == 0.05
    assert find_lookup_seconds(environ={"KVLOOM_LOOKUP_SECONDS": "0.2"}) == 0.2
    assert find_lookup_seconds(0.3, environ={"KVLOOM_LOOKUP_SECONDS": "0.2"}) == 0.3
    for wrong in ("0", "-1", "nan", "61", "soon"):
        with pytest.raises(ConfigError, match="lookup_seconds"):
            find_lookup_seconds(environ={"KVLOOM_LOOKUP_SECONDS": wrong})
    with pytest.raises(ConfigError):
        RetryPolicy(tries_max=0)
