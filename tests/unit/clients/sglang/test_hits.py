"""How long a prefix comes back whole, by every definition and by counting."""

from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.sglang.hits import PoolPages, PoolPolicy, leading, restorable_prefix

STORED = st.lists(st.booleans(), min_size=6, max_size=6)
ALL, TRAILING = PoolPolicy.ALL_PAGES, PoolPolicy.TRAILING_PAGES


def test_leading_pages_end_at_the_first_that_is_missing() -> None:
    assert leading([]) == 0
    assert leading([True, True]) == 2
    assert leading([True, False, True]) == 1


def test_without_other_pools_the_kv_alone_counts() -> None:
    hits = restorable_prefix([True, True, False], {})
    assert (hits.pages, dict(hits.by_pool), hits.lengths) == (2, {}, [1, 2])


def test_a_pool_of_states_needs_its_last_pages_only() -> None:
    states = PoolPages([False, True, True, False], TRAILING, trailing=2)
    hits = restorable_prefix([True] * 4, {"mamba": states})
    assert (hits.pages, hits.by_pool["mamba"], hits.lengths) == (3, 3, [3])


def test_lengths_that_suit_one_pool_each_are_no_hit() -> None:
    pools = {
        "mamba": PoolPages([False, False, True], TRAILING),
        "indexer": PoolPages([True, True, False], ALL),
    }
    hits = restorable_prefix([True] * 3, pools)
    assert (hits.pages, hits.lengths) == (0, [])
    assert dict(hits.by_pool) == {"mamba": 3, "indexer": 2}


@given(kv=STORED, every=STORED, last=STORED, trailing=st.integers(1, 6))
def test_a_length_is_restorable_where_no_page_that_it_needs_is_missing(
    kv: list[bool], every: list[bool], last: list[bool], trailing: int
) -> None:
    pools = {"a": PoolPages(every, ALL), "b": PoolPages(last, TRAILING, trailing)}
    hits = restorable_prefix(kv, pools)
    expected = [
        length
        for length in range(1, 7)
        if all(kv[:length]) and all(every[:length]) and all(last[max(0, length - trailing) : length])
    ]
    assert hits.lengths == expected
    assert hits.pages == max(expected, default=0)
