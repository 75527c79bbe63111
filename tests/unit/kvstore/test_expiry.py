import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.kvstore.expiry import ExpiryIndex, later_expiry
from kvloom.kvstore.key import StorageKey
from kvloom.kvstore.tier import NEVER, is_expired


def key(number: int) -> StorageKey:
    return StorageKey(number.to_bytes(32, "big"))


@pytest.mark.parametrize(
    ("expires", "now", "expired"), [(NEVER, 0, False), (NEVER, 10, False), (5, 4, False), (5, 5, True), (5, 6, True)]
)
def test_a_record_is_expired_from_its_time_on(expires: int, now: int, expired: bool) -> None:
    assert is_expired(expires, now) is expired


def test_never_is_the_latest() -> None:
    assert [later_expiry(*pair) for pair in ((3, 5), (5, 3), (NEVER, 5), (5, NEVER), (NEVER, NEVER))] == [5, 5, 0, 0, 0]


def test_only_what_expires_is_kept() -> None:
    index = ExpiryIndex()
    for number in range(1000):
        index.note(key(number), NEVER)
    assert len(index) == 0


def test_heap_does_not_grow_with_every_replacement() -> None:
    index = ExpiryIndex()
    for expires in range(1, 10_000):
        index.note(key(1), expires)
    assert len(index._heap) < 200
    assert index.due(9_999, 10) == [key(1)]
    assert index.due(9_998, 10) == []


@given(
    st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 50)))),
    st.integers(0, 60),
    st.integers(1, 12),
)
def test_due_is_what_a_plain_list_says(steps: list[tuple[int, int | None]], now: int, limit: int) -> None:
    index, plain = ExpiryIndex(), {}
    for number, expires in steps:
        if expires is None:
            index.forget(key(number))
            plain.pop(key(number), None)
        else:
            index.note(key(number), expires)
            plain[key(number)] = expires
    expected = sorted((expires, one) for one, expires in plain.items() if is_expired(expires, now))
    for _ in range(2):  # what is due stays due
        assert index.due(now, limit) == [one for _, one in expected[:limit]]
    assert len(index) == sum(expires != NEVER for expires in plain.values())
    for number in range(10):
        assert index.is_expired(key(number), now) == is_expired(plain.get(key(number), NEVER), now)
