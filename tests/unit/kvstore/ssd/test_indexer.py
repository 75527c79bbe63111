"""The file of the index itself, in this process: what is written is read, and what does not hold is not believed."""

from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from kvloom.kvstore.ssd.indexer import CLAIM, ENTRY, NOWHERE, Damaged, IndexFile

KIB = 1024
SEEDS = st.integers(1, 4)
PLACES = st.tuples(SEEDS, st.integers(0, 60))


def loaded(path: Path) -> tuple[list[tuple[int, int]], dict[int, int], int]:
    """Places in the order of use, claims, damage."""
    index = IndexFile(str(path), 256 * KIB)
    try:
        rows, claims, damaged = index.load()
    finally:
        index.close()
    entries = sorted((ENTRY.unpack(row) for row in rows), key=lambda entry: entry[2])
    return [(seed, offset) for seed, offset, _ in entries], dict(CLAIM.unpack(claim) for claim in claims), damaged


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(
        st.tuples(
            st.lists(st.tuples(st.none() | PLACES, st.none() | PLACES), max_size=150),
            st.none() | st.dictionaries(SEEDS, st.integers(0, 100)),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_it_keeps_what_a_dictionary_keeps(tmp_path_factory: pytest.TempPathFactory, batches) -> None:
    path = tmp_path_factory.mktemp("index") / "index"
    index = IndexFile(str(path), 256 * KIB)
    uses: dict[tuple[int, int], None] = {}
    stops: dict[int, int] = {}
    for changes, claims, reopen in batches:
        rows = [(*(before or (0, NOWHERE)), *(now or (0, NOWHERE))) for before, now in changes]
        index.write(rows, None if claims is None else list(claims.items()), 256 * KIB)
        for before, now in changes:
            uses.pop(before, None)
            if now is not None:
                uses.pop(now, None)
                uses[now] = None
                stops.setdefault(now[0], 0)
        if claims is not None:
            uses = {place: None for place in uses if place[0] in claims}
            stops = dict(claims)
        if reopen:
            index.close()
            index = IndexFile(str(path), 256 * KIB)
            index.load()
    index.close()
    assert loaded(path) == (list(uses), stops, 0)


def written(path: Path) -> None:
    index = IndexFile(str(path), 256 * KIB)
    rows = [(0, NOWHERE, seed, offset) for seed in (7, 8) for offset in range(50)]
    index.write(rows, [(7, 50), (8, 50)], 256 * KIB)
    index.close()


@pytest.mark.parametrize("change", ["missing", "altered", "added"])
def test_a_segment_whose_entries_are_not_all_and_only_those_written_claims_nothing(tmp_path: Path, change: str) -> None:
    """As where a power cut has left some pages older than others."""
    path = tmp_path / "index"
    written(path)
    with lmdb.open(str(path), subdir=False, lock=False) as environment, environment.begin(write=True) as transaction:
        entries = [(bytes(key), bytes(value)) for key, value in transaction.cursor() if len(key) == 8]
        key, value = entries[10]
        if change == "missing":
            transaction.delete(key)
        elif change == "altered":
            transaction.put(key, bytes([value[0] ^ 1]) + value[1:])
        else:
            another = key[:4] + bytes([1, 0, 0, 0])
            transaction.put(another, value[:8] + xxh3_64_digest(another + value[:8]))
    places, claims, damaged = loaded(path)
    assert claims == {8: 50}
    assert damaged > 0
    assert len([place for place in places if place[0] == 7]) == (51 if change == "added" else 49)
    assert len([place for place in places if place[0] == 8]) == 50


def test_a_database_that_is_no_index_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with lmdb.open(str(path), subdir=False, lock=False) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    with pytest.raises(Damaged, match="does not say that it is an index"):
        loaded(path)


def test_it_never_grows_beyond_what_it_may_have(tmp_path: Path) -> None:
    path = tmp_path / "index"
    index = IndexFile(str(path), 64 * KIB)
    with pytest.raises(lmdb.MapFullError):
        index.write([(0, NOWHERE, 7, offset) for offset in range(5000)], None, 64 * KIB)
    assert path.stat().st_size <= 64 * KIB
    index.reset(512 * KIB)
    index.write([(0, NOWHERE, 7, offset) for offset in range(5000)], [(7, 5000)], 512 * KIB)
    index.close()
    places, claims, damaged = loaded(path)
    assert (len(places), claims, damaged) == (5000, {7: 5000}, 0)


def test_an_entry_takes_about_forty_bytes_and_use_makes_it_no_larger(tmp_path: Path) -> None:
    """A tier charges each frame 128 bytes for it (limits.SSD_INDEX_FRAME_BYTES)."""
    path = tmp_path / "index"
    index = IndexFile(str(path), 8 * KIB * KIB)
    places = [(seed, offset) for seed in range(1, 11) for offset in range(2000)]
    index.write([(0, NOWHERE, *place) for place in places], [(seed, 2000) for seed in range(1, 11)], 8 * KIB * KIB)
    assert path.stat().st_size < 45 * len(places)
    for turn in range(5):
        index.write([(*place, *place) for place in places[turn::7]], None, 8 * KIB * KIB)
    assert path.stat().st_size < 100 * len(places)
    index.close()
