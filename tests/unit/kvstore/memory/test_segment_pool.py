"""How many segments an owner holds, of what size, and what becomes of dead ones."""

import pytest

from kvloom.kvstore.memory.segment_pool import SegmentPool
from kvloom.kvstore.tier import OwnerId

ALICE, BOB = OwnerId(b"a" * 16), OwnerId(b"b" * 16)
KIB = 1024
SEGMENT_BYTES = 256 * KIB


@pytest.fixture
def pool():
    return SegmentPool(SEGMENT_BYTES, spare_bytes_max=128 * KIB)


def filled(pool, owner, size_bytes=64 * KIB, live_bytes=None):
    """A sealed segment in which something lies."""
    segment = pool.map(owner, size_bytes, dedicated=False)
    segment.reserve(size_bytes if live_bytes is None else live_bytes)
    return segment


def test_segments_grow_with_what_their_owner_has(pool):
    sizes = []
    while len(sizes) < 40:
        sizes.append(pool.next_size(ALICE, 100))
        filled(pool, ALICE, sizes[-1])
    assert sizes[0] == SEGMENT_BYTES // 16
    assert sizes[-1] == SEGMENT_BYTES
    assert sizes == sorted(sizes)
    assert pool.next_size(BOB, 100) == SEGMENT_BYTES // 16
    assert pool.next_size(BOB, 30 * KIB) == 120 * KIB
    assert pool.next_size(BOB, SEGMENT_BYTES // 4) == SEGMENT_BYTES


def test_a_dead_segment_is_kept_for_its_owner_only(pool):
    segment = filled(pool, ALICE)
    segment.release(64 * KIB)
    pool.give_back_if_dead(segment)
    assert pool.take_spare(BOB, 64 * KIB, dedicated=False) is None
    assert pool.take_spare(ALICE, 40 * KIB, dedicated=False) is None
    assert pool.take_spare(ALICE, 80 * KIB, dedicated=False) is None
    assert pool.take_spare(ALICE, 60 * KIB, dedicated=True) is segment
    assert segment.dedicated
    assert segment.free_bytes == 64 * KIB


def test_spares_are_bounded_and_given_up_when_room_is_needed(pool):
    segments = [filled(pool, ALICE) for _ in range(4)]
    for segment in segments:
        segment.release(64 * KIB)
        pool.give_back_if_dead(segment)
    assert [segment.closed for segment in segments] == [False, False, True, True]
    assert pool.mapped_bytes == 128 * KIB
    assert pool.drop_spare()
    assert pool.drop_spare()
    assert not pool.drop_spare()
    assert pool.mapped_bytes == 0
    assert not pool.segments


def test_a_dead_segment_that_is_read_waits(pool):
    segment = filled(pool, ALICE)
    view = segment.view(0, 10)
    segment.release(64 * KIB)
    pool.give_back_if_dead(segment)
    pool.reclaim()
    assert pool.mapped_bytes == 64 * KIB
    assert pool.take_spare(ALICE, 64 * KIB, dedicated=False) is None
    del view
    pool.reclaim()
    assert pool.take_spare(ALICE, 64 * KIB, dedicated=False) is segment


def test_an_open_segment_that_empties_is_filled_from_its_start(pool):
    segment = pool.open[ALICE] = filled(pool, ALICE, live_bytes=KIB)
    segment.release(KIB)
    pool.give_back_if_dead(segment)
    assert segment.free_bytes == 64 * KIB
    segment.reserve(KIB)
    segment.abandoned = True
    segment.release(KIB)
    pool.give_back_if_dead(segment)
    assert segment.closed
    assert not pool.open


def test_what_is_compacted_is_of_one_owner_sealed_and_fits(pool):
    full = filled(pool, ALICE, 128 * KIB)
    sparse = [filled(pool, ALICE, live_bytes=size * KIB) for size in (48, 8, 16)]
    other = filled(pool, BOB, live_bytes=20 * KIB)
    pool.open[ALICE] = filled(pool, ALICE, live_bytes=KIB)
    chosen = pool.sparse_segments()
    assert [segment.live_bytes // KIB for segment in chosen] == [8, 16, 48]
    assert full not in chosen
    assert other not in chosen
    assert pool.compacted_size(chosen, 0) == 72 * KIB
    assert pool.compacted_size(chosen, KIB) == 192 * KIB
    assert set(sparse) == set(chosen)


def test_small_full_segments_move_together_with_a_sparse_one_so_that_they_do_not_pile_up(pool):
    large = filled(pool, ALICE, 100 * KIB)
    for size in (40, 20):
        filled(pool, ALICE, size * KIB)
    assert pool.sparse_segments() == []
    filled(pool, ALICE, live_bytes=24 * KIB)
    filled(pool, BOB, 8 * KIB)
    chosen = pool.sparse_segments()
    assert [segment.live_bytes // KIB for segment in chosen] == [24, 20, 40]
    assert large not in chosen


def test_what_moves_together_fits_one_segment(pool):
    filled(pool, ALICE, 256 * KIB, live_bytes=150 * KIB)
    for _ in range(3):
        filled(pool, ALICE, 32 * KIB)
    assert [segment.live_bytes // KIB for segment in pool.sparse_segments()] == [150, 32]


def test_what_a_put_still_copies_into_does_not_move(pool):
    segment = filled(pool, ALICE, live_bytes=8 * KIB)
    with segment.writable(0, 8 * KIB):
        assert pool.sparse_segments() == []
    assert pool.sparse_segments() == [segment]
