"""Sessions and login attempts: they end, they are bounded, and no secret is kept."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.daemon.dashboard.attempts import Attempts
from kvloom.daemon.dashboard.sessions import Sessions
from kvloom.errors import Overloaded, TooManyAttempts, Unauthenticated


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_session_names_its_key_until_it_is_ended():
    sessions = Sessions()
    mine, other = sessions.begin("key one"), sessions.begin("key two")
    assert mine.text != other.text
    assert sessions.key_id(mine.text) == "key one"
    sessions.end(mine.text)
    with pytest.raises(Unauthenticated):
        sessions.key_id(mine.text)
    assert sessions.key_id(other.text) == "key two"


def test_a_session_ends_by_itself():
    clock = Clock()
    sessions = Sessions(clock=clock)
    begun = sessions.begin("key")
    clock.now += begun.seconds - 0.001
    assert sessions.key_id(begun.text) == "key"
    clock.now += 0.001
    with pytest.raises(Unauthenticated):
        sessions.key_id(begun.text)
    with pytest.raises(Unauthenticated):
        sessions.end(begun.text)
    sessions.begin("other")
    assert len(sessions) == 1


@given(st.text(max_size=100))
def test_what_is_no_session_is_refused_in_the_same_words(text):
    sessions = Sessions()
    sessions.begin("key")
    with pytest.raises(Unauthenticated, match=r"^the session has ended: log in again$"):
        sessions.key_id(text)


def test_every_character_of_the_secret_counts():
    sessions = Sessions()
    text = sessions.begin("key").text
    assert len(text) == 16 + 1 + 43
    for place in range(len(text) - 1):  # the last character has two bits that mean nothing
        wrong = "A" if text[place] != "A" else "B"
        with pytest.raises(Unauthenticated):
            sessions.key_id(text[:place] + wrong + text[place + 1 :])
    assert sessions.key_id(text) == "key"


def test_nothing_that_is_kept_names_a_session():
    drawn = []

    def random(count):
        drawn.append(os.urandom(count))
        return drawn[-1]

    sessions = Sessions(random=random)
    text = sessions.begin("key").text
    kept = repr(vars(sessions))
    assert text.partition(".")[2] not in kept
    assert repr(drawn[1])[2:-1] not in kept


def test_a_key_that_logs_in_once_more_ends_its_oldest_session_and_nobody_elses():
    sessions = Sessions()
    other = sessions.begin("other")
    mine = [sessions.begin("key") for _ in range(limits.SESSIONS_PER_KEY_MAX + 2)]
    for ended in mine[:2]:
        with pytest.raises(Unauthenticated):
            sessions.key_id(ended.text)
    assert [sessions.key_id(item.text) for item in (other, *mine[2:])] == ["other"] + ["key"] * (len(mine) - 2)


def test_there_are_so_many_sessions_and_no_more(monkeypatch):
    monkeypatch.setattr(limits, "SESSIONS_MAX", 3)
    clock = Clock()
    sessions = Sessions(clock=clock)
    for number in range(3):
        sessions.begin(f"key {number}")
    with pytest.raises(Overloaded, match="the limit is 3"):
        sessions.begin("one more")
    clock.now += limits.SESSION_SECONDS_MAX
    sessions.begin("one more")
    assert len(sessions) == 1


def test_whoever_sends_wrong_keys_has_to_wait_and_others_do_not():
    clock = Clock()
    attempts = Attempts(clock=clock)
    for _ in range(limits.LOGIN_FAILURES_MAX):
        attempts.check("192.0.2.1")
        attempts.failed("192.0.2.1")
        clock.now += 1
    with pytest.raises(TooManyAttempts) as refused:
        attempts.check("192.0.2.1")
    assert refused.value.retry_seconds == limits.LOGIN_WINDOW_SECONDS - limits.LOGIN_FAILURES_MAX
    attempts.check("192.0.2.2")
    clock.now += refused.value.retry_seconds
    attempts.check("192.0.2.1")


def test_one_network_is_one_address_where_addresses_are_plenty():
    attempts = Attempts(clock=Clock())
    for number in range(limits.LOGIN_FAILURES_MAX):
        attempts.failed(f"2001:db8::{number:x}%eth0")
    with pytest.raises(TooManyAttempts):
        attempts.check("2001:db8::ffff")
    attempts.check("2001:db8:0:1::1")
    attempts.check("not an address")


def test_addresses_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "LOGIN_PEERS_MAX", 2)
    monkeypatch.setattr(limits, "LOGIN_FAILURES_MAX", 1)
    attempts = Attempts(clock=Clock())
    for number in range(1, 4):
        attempts.failed(f"192.0.2.{number}")
    attempts.check("192.0.2.1")
    for number in (2, 3):
        with pytest.raises(TooManyAttempts):
            attempts.check(f"192.0.2.{number}")
