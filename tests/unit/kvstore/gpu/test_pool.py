"""The pool in every place it can be: what is in it is what the codec decodes, and pages in use are nobody else's."""

import asyncio
import gc
import threading
from dataclasses import replace

import numpy as np
import pytest
from pool_source import (
    MIXED,
    PAGE_TOKENS,
    PLAIN,
    FarArrays,
    Kv,
    Shelf,
    check_books,
    content,
    draw_kv,
    key_of,
    leased,
    reached,
    touch,
)

from kvloom import codec
from kvloom.codec import EXACT, STANDARD, Container, KvDtype
from kvloom.errors import (
    ConfigError,
    DaemonUnavailable,
    InvalidRequest,
    InvalidTensor,
    LayoutMismatch,
    StorageFull,
    StorageUnavailable,
)
from kvloom.kvstore.eviction import ChunkAttributes, HintedPolicy
from kvloom.kvstore.gpu import filling
from kvloom.kvstore.gpu.arrays import HostArrays
from kvloom.kvstore.gpu.journal import Changes
from kvloom.kvstore.gpu.pool import DecodedPool, PoolRules
from kvloom.kvstore.gpu.source import ChunkWanted, Encoding
from kvloom.kvstore.outcome import Corrupt, Hit, Miss, Throttled, Unavailable
from kvloom.kvstore.quota import Quota, QuotaPolicy, Quotas
from kvloom.kvstore.tier import OwnerId

HALF = replace(PLAIN, dtype=KvDtype.FLOAT16)
ALICE, BOB = OwnerId(b"a" * 16), OwnerId(b"b" * 16)


@pytest.mark.parametrize("layout", [PLAIN, MIXED, HALF], ids=["plain", "mixed", "half"])
@pytest.mark.parametrize("level", [EXACT, STANDARD], ids=str)
async def test_what_is_resident_is_what_the_codec_decodes(open_pool, layout, level):
    source = Shelf(layout)
    keys = [source.add(n, tokens=tokens, first_position=7, level=level) for n, tokens in enumerate((1, 4, 5, 11))]
    async with open_pool(source) as pool:
        for _ in range(2):  # loaded, then found
            for key in keys:
                with await leased(pool, ChunkWanted(key, level)) as lease:
                    assert (lease.content_key, lease.level, lease.first_position) == (key, level, 7)
                    assert content(pool, lease).same_as(source.decoded(key, level))
        assert (pool.stats().loads, pool.stats().hits) == (4, 4)


@pytest.mark.parametrize("dtype", [KvDtype.BFLOAT16, KvDtype.FLOAT8_E4M3FN], ids=str)
async def test_element_types_that_numpy_has_not_are_kept_too(open_pool, arrays, dtype):
    if arrays.name.startswith("cupy"):
        pytest.skip(f"CuPy has no {dtype}")
    source = Shelf(replace(PLAIN, dtype=dtype))
    key = source.add(1, tokens=6)
    async with open_pool(source) as pool:
        with await leased(pool, ChunkWanted(key)) as lease:
            assert content(pool, lease).same_as(source.decoded(key))
            assert content(pool, lease, 9).same_as(source.decoded(key, first_position=9))


@pytest.mark.parametrize("level", [EXACT, STANDARD], ids=str)
async def test_pages_that_do_not_stand_together_hold_a_chunk_just_so(open_pool, level):
    source = Shelf(MIXED)
    small = [source.add(n, level=level) for n in range(6)]
    large = source.add(9, tokens=3 * PAGE_TOKENS - 1, level=level)
    async with open_pool(source, pages=6) as pool:
        leases = [await leased(pool, ChunkWanted(key, level)) for key in small]
        for lease in leases[::2]:
            lease.release()
        with await leased(pool, ChunkWanted(large, level)) as lease:
            assert list(lease.pages) == [0, 2, 4]
            assert content(pool, lease).same_as(source.decoded(large, level))
            for kept, key in zip(leases[1::2], small[1::2], strict=True):
                assert content(pool, kept).same_as(source.decoded(key, level))
                kept.release()


async def test_a_chunk_comes_at_the_position_wanted(open_pool):
    source = Shelf(MIXED)
    key = source.add(1, tokens=6, first_position=3)
    async with open_pool(source) as pool:
        with await leased(pool, ChunkWanted(key, first_position=40)) as lease:
            assert lease.first_position == 40
            assert content(pool, lease).same_as(source.decoded(key, first_position=40))
            assert content(pool, lease, 41).keys[0].shape == (2, 6, 8)


async def test_another_position_is_a_rotation_of_what_is_resident(open_pool):
    source = Shelf(MIXED)
    key = source.add(1, tokens=6, first_position=3)
    async with open_pool(source) as pool:
        await touch(pool, ChunkWanted(key))
        with await leased(pool, ChunkWanted(key, first_position=40)) as lease:
            assert content(pool, lease).same_as(source.decoded(key, first_position=40))
        with await leased(pool, ChunkWanted(key, first_position=5)) as lease:
            assert content(pool, lease).same_as(source.decoded(key, first_position=5)), "moved from the original"
        assert (len(source.calls), pool.stats().moves, pool.stats().chunks) == (1, 2, 3)
        with await leased(pool, ChunkWanted(key)) as lease:
            assert lease.first_position == 3
            assert content(pool, lease, 40).same_as(source.decoded(key, first_position=40)), "rotated while copied out"


async def test_what_has_no_room_beside_itself_gives_way_to_itself_at_another_position(open_pool):
    source = Shelf()
    key = source.add(1, tokens=6, first_position=3)
    async with open_pool(source, pages=3) as pool:
        await touch(pool, ChunkWanted(key))
        with await leased(pool, ChunkWanted(key, first_position=40)) as lease:
            assert content(pool, lease).same_as(source.decoded(key, first_position=40))
            assert isinstance(await pool.get(ChunkWanted(key)), Throttled), "read at 40 now"
        assert (pool.stats().moves, pool.stats().chunks, pool.stats().refused) == (0, 1, 1)


async def test_what_is_resident_only_and_has_no_room_is_no_miss(open_pool):
    kv = draw_kv(PLAIN, 2 * PAGE_TOKENS, 1)
    async with open_pool(Shelf(), pages=3) as pool:
        assert await pool.put(ChunkWanted(key_of(1), first_position=3), kv.keys, kv.values)
        assert isinstance(await pool.get(ChunkWanted(key_of(1), first_position=40)), Throttled)
        assert pool.longest_prefix([ChunkWanted(key_of(1), first_position=3)]) == 1


async def test_keys_that_were_turned_are_not_turned_again(open_pool):
    source = Shelf()
    exact, lossy = source.add(1, first_position=1), source.add(2, first_position=1, level=STANDARD)
    async with open_pool(source) as pool:
        for key, level in ((exact, EXACT), (lossy, STANDARD)):
            await touch(pool, ChunkWanted(key, level, 3))
            with await leased(pool, ChunkWanted(key, level, 50)) as lease:
                if level == EXACT:
                    assert content(pool, lease).same_as(source.decoded(key, first_position=50))
        assert len(source.calls) == 3, "exact at 3 had been turned from 1, standard at 3 had not"
        with await leased(pool, ChunkWanted(exact)) as lease:
            assert lease.first_position == 1


async def test_only_what_rotates_can_move(open_pool):
    source = Shelf(PLAIN.as_given())
    key = source.add(1, first_position=3)
    async with open_pool(source) as pool:
        for _ in range(2):
            assert isinstance(await pool.get(ChunkWanted(key, first_position=4)), Unavailable)
            with await leased(pool, ChunkWanted(key, first_position=3)) as lease:
                assert content(pool, lease, 3).same_as(source.decoded(key))
                with pytest.raises(LayoutMismatch, match="cannot be moved"):
                    content(pool, lease, 4)


async def test_levels_and_owners_have_chunks_of_their_own(open_pool):
    source = Shelf()
    key = source.add(1, level=STANDARD)
    async with open_pool(source) as pool:
        await touch(pool, ChunkWanted(key, STANDARD, owner=ALICE))
        assert pool.resident(ChunkWanted(key, STANDARD, owner=BOB)) is None
        assert pool.resident(ChunkWanted(key, codec.DRAFT, owner=ALICE)) is None
        with pool.resident(ChunkWanted(key, STANDARD, owner=ALICE)) as lease:
            assert content(pool, lease).same_as(source.decoded(key, STANDARD))
        await touch(pool, ChunkWanted(key, STANDARD, owner=BOB))
        assert pool.forget_owner(ALICE) == 1
        assert not pool.longest_prefix([ChunkWanted(key, STANDARD, owner=ALICE)])
        assert pool.longest_prefix([ChunkWanted(key, STANDARD, owner=BOB)]) == 1


async def test_the_least_recently_used_goes(open_pool):
    source = Shelf()
    keys = [source.add(n) for n in range(5)]
    async with open_pool(source, pages=4) as pool:
        for number in (0, 1, 2, 3, 0, 2):
            await touch(pool, ChunkWanted(keys[number]))
        await touch(pool, ChunkWanted(keys[4]))
        held = [pool.longest_prefix([ChunkWanted(key)]) for key in keys]
        assert held == [1, 0, 1, 1, 1]
        assert pool.stats().evictions == 1
        check_books(pool)


async def test_what_is_said_to_be_finished_goes_first(open_pool):
    source = Shelf()
    keys = [source.add(n) for n in range(5)]
    async with open_pool(source, pages=4, policy=QuotaPolicy(HintedPolicy)) as pool:
        for key in keys[:4]:
            await touch(pool, ChunkWanted(key))
        pool.hint([ChunkWanted(keys[2])], finished=True)
        await touch(pool, ChunkWanted(keys[4]))
        assert [pool.longest_prefix([ChunkWanted(key)]) for key in keys] == [1, 1, 0, 1, 1]


async def test_pages_that_are_leased_are_not_used_again(open_pool):
    source = Shelf()
    keys = [source.add(n, tokens=2 * PAGE_TOKENS) for n in range(6)]
    async with open_pool(source, pages=8) as pool:
        held = {key: await leased(pool, ChunkWanted(key)) for key in keys[:3]}
        for key in keys[3:] * 2:
            await touch(pool, ChunkWanted(key))
            check_books(pool)
        for key, lease in held.items():
            assert content(pool, lease).same_as(source.decoded(key))
        more = await leased(pool, ChunkWanted(keys[3]))
        assert isinstance(await pool.get(ChunkWanted(keys[4])), Throttled)
        assert pool.stats().refused == 1
        more.release()
        more.release()
        await touch(pool, ChunkWanted(keys[4]))
        for lease in held.values():
            lease.release()


async def test_a_chunk_larger_than_the_pool_is_refused(open_pool):
    source = Shelf()
    small, large = source.add(1), source.add(2, tokens=9 * PAGE_TOKENS)
    async with open_pool(source) as pool:
        await touch(pool, ChunkWanted(small))
        assert isinstance(await pool.get(ChunkWanted(large)), Throttled)
        assert pool.longest_prefix([ChunkWanted(small)]) == 1, "nothing was evicted for it"


async def test_owners_keep_to_their_quotas_and_give_way_to_nobody_within_them(open_pool):
    source = Shelf()
    keys = [source.add(n) for n in range(12)]
    page_bytes = PAGE_TOKENS * PLAIN.bytes_per_token
    quotas = Quotas(
        by_owner={ALICE: Quota(3 * page_bytes, 2 * page_bytes), BOB: Quota(guaranteed_bytes=4 * page_bytes)}
    )
    async with open_pool(source, pages=6, policy=QuotaPolicy(quotas=quotas)) as pool:
        for key in keys[:5]:
            await touch(pool, ChunkWanted(key, owner=ALICE))
        assert pool.holdings(ALICE).used_bytes == 3 * page_bytes
        assert pool.longest_prefix([ChunkWanted(key, owner=ALICE) for key in keys[2:5]]) == 3
        for key in keys:
            await touch(pool, ChunkWanted(key, owner=BOB))
        assert pool.holdings(ALICE).used_bytes == 2 * page_bytes
        assert pool.holdings(BOB).used_bytes == 4 * page_bytes
        wide = source.add(20, tokens=4 * PAGE_TOKENS)
        assert isinstance(await pool.get(ChunkWanted(wide, owner=ALICE)), Throttled)


def test_what_is_guaranteed_must_be_there():
    quotas = Quotas(by_owner={ALICE: Quota(guaranteed_bytes=10**9)})
    with pytest.raises(ConfigError, match="guarantees 1000000000 bytes"):
        DecodedPool(PLAIN, Shelf(), limit_bytes=10_000, policy=QuotaPolicy(quotas=quotas))


async def test_forgotten_chunks_keep_their_pages_while_they_are_read(open_pool):
    source = Shelf()
    keys = [source.add(n, tokens=2 * PAGE_TOKENS) for n in range(4)]
    async with open_pool(source, pages=4) as pool:
        lease = await leased(pool, ChunkWanted(keys[0]))
        assert pool.forget(ChunkWanted(keys[0]))
        assert not pool.forget(ChunkWanted(keys[0]))
        assert pool.resident(ChunkWanted(keys[0])) is None
        for key in keys[1:]:
            await touch(pool, ChunkWanted(key))
            check_books(pool)
        assert content(pool, lease).same_as(source.decoded(keys[0]))
        assert pool.stats().leased == 1
        lease.release()


@pytest.mark.parametrize("arrays", [FarArrays()], ids=["far"])
async def test_pages_wait_for_the_device_to_be_done_with_them(open_pool, arrays):
    source = Shelf()
    keys = [source.add(n) for n in range(3)]
    async with open_pool(source, pages=2) as pool:
        arrays.holding = True
        for key in keys[:2]:
            await touch(pool, ChunkWanted(key))
        assert isinstance(await pool.get(ChunkWanted(keys[2])), Throttled), "both are released, neither is done with"
        arrays.finish()
        await touch(pool, ChunkWanted(keys[2]))
        arrays.finish()


async def test_a_lease_that_was_dropped_comes_back(open_pool, arrays):
    source = Shelf()
    keys = [source.add(n) for n in range(2)]
    async with open_pool(source, pages=1) as pool:
        lease = await leased(pool, ChunkWanted(keys[0]))
        del lease
        gc.collect()
        await touch(pool, ChunkWanted(keys[1]))
        assert pool.stats().leases_dropped == 1
        if isinstance(arrays, FarArrays):
            assert arrays.synchronised, "nobody knows which stream read it"


async def test_a_thousand_who_want_the_same_chunk_have_it_loaded_once(open_pool):
    source = Shelf()
    key = source.add(1, tokens=7)
    async with open_pool(source) as pool:
        leases = await asyncio.gather(*(leased(pool, ChunkWanted(key)) for _ in range(1000)))
        assert len(source.calls) == 1
        assert content(pool, leases[-1]).same_as(source.decoded(key))
        for lease in leases:
            lease.release()


async def test_a_batch_is_one_call_and_whoever_overlaps_joins_it(open_pool):
    source = Shelf()
    keys = [source.add(n) for n in range(5)]
    async with open_pool(source) as pool:
        source.gate.clear()
        first = asyncio.create_task(pool.get_many([ChunkWanted(key) for key in (*keys[:3], keys[0])]))
        await reached(source)
        second = asyncio.create_task(pool.get_many([ChunkWanted(key) for key in keys[2:]]))
        await reached(source)
        source.gate.set()
        outcomes = [*await first, *await second]
        for key, outcome in zip((*keys[:3], keys[0], *keys[2:]), outcomes, strict=True):
            assert content(pool, outcome.value).same_as(source.decoded(key))
            outcome.value.release()
        assert set(source.calls) == {tuple(keys[:3]), tuple(keys[3:])}
        assert len(source.calls) == 2


async def test_one_place_wanted_by_two_names_is_filled_once(open_pool):
    source = Shelf()
    key = source.add(1, first_position=7)
    async with open_pool(source) as pool:
        outcomes = await pool.get_many([ChunkWanted(key), ChunkWanted(key, first_position=7)])
        assert [outcome.value.first_position for outcome in outcomes] == [7, 7]
        assert outcomes[0].value.chunk is outcomes[1].value.chunk
        for outcome in outcomes:
            outcome.value.release()


@pytest.mark.parametrize("waiters", [1, 3])
async def test_cancelling_who_waits_for_a_load_leaks_nothing(open_pool, waiters):
    source = Shelf()
    key = source.add(1)
    async with open_pool(source) as pool:
        source.gate.clear()
        tasks = [asyncio.create_task(pool.get(ChunkWanted(key))) for _ in range(waiters)]
        await reached(source)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks[1:] or [asyncio.create_task(asyncio.sleep(0))])
        tasks[0].cancel()
        source.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert not len(pool._flights)
        assert not pool._loading._claims
        check_books(pool)
        await touch(pool, ChunkWanted(key))


async def test_pages_being_decoded_into_are_not_given_back_before_the_thread_is_done(open_pool, monkeypatch):
    source = Shelf()
    keys = [source.add(n, tokens=2 * PAGE_TOKENS) for n in range(2)]
    entered, leave = threading.Event(), threading.Event()
    decode = filling.decode_into

    def slow(container, *args, **options):
        if container.header.content_key == keys[0]:
            entered.set()
            assert leave.wait(30)
        decode(container, *args, **options)

    monkeypatch.setattr(filling, "decode_into", slow)
    async with open_pool(source, pages=2) as pool:
        first = asyncio.create_task(pool.get(ChunkWanted(keys[0])))
        assert await asyncio.to_thread(entered.wait, 30)
        for _ in range(3):  # however often
            first.cancel()
            await asyncio.sleep(0)
        assert not first.done()
        assert isinstance(await pool.get(ChunkWanted(keys[1])), Throttled), "the pages are written to still"
        again = asyncio.create_task(pool.get(ChunkWanted(keys[0])))
        await asyncio.sleep(0)
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        (await again).value.release()
        await touch(pool, ChunkWanted(keys[1]))


async def test_what_the_source_does_not_have_or_finds_damaged_does_not_enter(open_pool):
    source = Shelf()
    keys = [source.add(n) for n in range(2)]
    source.damaged.add(keys[0])
    async with open_pool(source) as pool:
        outcomes = await pool.get_many([ChunkWanted(key) for key in (keys[0], key_of(77), keys[1])])
        assert isinstance(outcomes[0], Corrupt)
        assert isinstance(outcomes[1], Miss)
        outcomes[2].value.release()
        assert isinstance(await pool.get(ChunkWanted(keys[1], STANDARD)), Miss), "it has no such level"
        assert (pool.stats().chunks, pool.stats().corrupt) == (1, 1)


async def test_a_stream_that_does_not_decode_leaves_no_page_behind(open_pool, monkeypatch):
    source = Shelf()
    keys = [source.add(n, tokens=30, level=STANDARD) for n in range(2)]
    blob = bytearray(source.containers[keys[0]])
    blob[-200:] = bytes(200)  # as a checksum would not have found it

    def load(wanted, level):
        whole = Container.parse(source.containers[keys[1]])
        damaged = Container(Container.parse(source.containers[keys[0]]).header, memoryview(bytes(blob)))
        return [Hit(damaged if key == keys[0] else whole, "memory") for key in wanted]

    monkeypatch.setattr(source, "load", load)
    async with open_pool(source, pages=16) as pool:
        finest = Container.parse(source.containers[keys[0]]).header.levels[-1]
        outcomes = await pool.get_many([ChunkWanted(key, finest) for key in keys])
        assert isinstance(outcomes[0], Corrupt), outcomes
        assert content(pool, outcomes[1].value).same_as(source.decoded(keys[1], finest))
        outcomes[1].value.release()
        assert pool.stats().chunks == 1


async def test_a_container_of_another_chunk_or_model_is_damage(open_pool):
    source, other = Shelf(), Shelf(replace(PLAIN, layers=PLAIN.layers[:1]))
    keys = [source.add(n) for n in range(2)]
    source.containers[keys[0]] = source.containers[keys[1]]
    source.load = lambda wanted, level: [Hit(Container.parse(source.containers[key]), "memory") for key in wanted]
    foreign = other.add(5)
    source.containers[foreign] = other.containers[foreign]
    async with open_pool(source) as pool:
        for key in (keys[0], foreign):
            assert isinstance(await pool.get(ChunkWanted(key)), Corrupt)
        assert not pool.stats().chunks


async def test_a_profile_that_cannot_be_had_is_no_damage(open_pool, monkeypatch):
    source = Shelf()
    key = source.add(1, level=STANDARD)
    generic = codec.generic_profile(PLAIN)
    monkeypatch.setattr(codec.codec, "generic_profile", lambda layout: replace(generic, layout=MIXED))
    async with open_pool(source) as pool:
        assert isinstance(await pool.get(ChunkWanted(key, STANDARD)), Unavailable)
        assert not pool.stats().corrupt


async def test_what_an_engine_computes_is_resident_at_once_and_stored_soon(open_pool):
    source = Shelf()
    kv = draw_kv(PLAIN, 6, 1)
    given = Kv([array.copy() for array in kv.keys], [array.copy() for array in kv.values])
    wanted = ChunkWanted(key_of(1), first_position=12)
    async with open_pool(source) as pool:
        encoding = Encoding({STANDARD, EXACT}, parent=key_of(9))
        assert await pool.put(wanted, given.keys, given.values, encoding=encoding)
        given.keys[0][...] = 0
        with pool.resident(wanted) as lease:
            assert content(pool, lease).same_as(kv)
        assert not await pool.put(wanted, kv.keys, kv.values, encoding=Encoding())
        await pool.drained()
        assert source.stored == [key_of(1)]
        assert source.parents == {key_of(1): key_of(9)}
        assert source.decoded(key_of(1)).same_as(kv)
        header = Container.parse(source.containers[key_of(1)], content_key=key_of(1)).header
        assert (header.first_position, header.levels[-1]) == (12, EXACT)
        assert STANDARD in header.levels
        assert (pool.stats().stored, pool.stats().dirty_bytes) == (1, 0)


async def test_what_is_not_stored_yet_is_not_evicted_and_is_bounded(open_pool):
    source = Shelf()
    fillers = [source.add(n) for n in range(20, 26)]
    kv = draw_kv(PLAIN, PAGE_TOKENS, 1)
    async with open_pool(source, pages=4) as pool:
        source.gate.clear()
        for number in range(2):
            await pool.put(ChunkWanted(key_of(number), first_position=0), kv.keys, kv.values, encoding=Encoding())
        third = asyncio.create_task(
            pool.put(ChunkWanted(key_of(2), first_position=0), kv.keys, kv.values, encoding=Encoding())
        )
        await reached(source)
        assert not third.done()
        assert pool.stats().dirty_bytes == 2 * pool.stats().page_bytes, "half of the pool"
        source.load = lambda wanted, level: [source._load(key, level) for key in wanted]
        for key in fillers:
            await touch(pool, ChunkWanted(key))
        assert pool.longest_prefix([ChunkWanted(key_of(number)) for number in range(2)]) == 2
        source.gate.set()
        assert await third
        await pool.drained()
        assert sorted(source.stored) == sorted(map(key_of, range(3)))


async def test_cancelling_a_put_leaks_nothing(open_pool):
    source = Shelf()
    kv = draw_kv(PLAIN, PAGE_TOKENS, 1)
    async with open_pool(source, pages=4) as pool:
        for steps in range(6):
            wanted = ChunkWanted(key_of(steps), first_position=0)
            task = asyncio.create_task(pool.put(wanted, kv.keys, kv.values, encoding=Encoding()))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await pool.drained()
            assert pool.stats().dirty_bytes == 0
            check_books(pool)


async def test_a_chunk_that_cannot_be_stored_stays_while_there_is_room(open_pool):
    source = Shelf()
    source.refuse = DaemonUnavailable("nobody there")
    kv = draw_kv(PLAIN, PAGE_TOKENS, 1)
    wanted = ChunkWanted(key_of(1), first_position=0)
    async with open_pool(source, pages=2) as pool:
        await pool.put(wanted, kv.keys, kv.values, encoding=Encoding())
        await pool.drained()
        assert (pool.stats().unstored, pool.stats().dirty_bytes) == (1, 0)
        with pool.resident(wanted) as lease:
            assert content(pool, lease).same_as(kv)
        for number in (8, 9):
            await touch(pool, ChunkWanted(source.add(number)))
        assert pool.resident(wanted) is None


async def test_what_does_not_fit_or_is_not_computed_is_not_put(open_pool):
    kv = draw_kv(PLAIN, PAGE_TOKENS, 1)
    wanted = ChunkWanted(key_of(1), first_position=0)
    async with open_pool(Shelf(), pages=2) as pool:
        for wrong in (ChunkWanted(key_of(1)), ChunkWanted(key_of(1), STANDARD, 0)):
            with pytest.raises(InvalidRequest, match="level exact"):
                await pool.put(wrong, kv.keys, kv.values)
        for keys, values, message in (
            ([], [], "keys have 0 layers"),
            (kv.keys[:1], kv.values, "keys have 1 layers"),
            (kv.keys, [array[:, :2] for array in kv.values], "values of layer 0"),
            ([array.astype(np.float16) for array in kv.keys], kv.values, "keys of layer 0: float16"),
        ):
            with pytest.raises(InvalidTensor, match=message):
                await pool.put(wanted, keys, values, encoding=Encoding())
        wide = draw_kv(PLAIN, 3 * PAGE_TOKENS, 1)
        with pytest.raises(StorageFull, match="chunk takes"):
            await pool.put(wanted, wide.keys, wide.values, encoding=Encoding())
        with pytest.raises(InvalidRequest, match="0 levels"):
            Encoding(())
        assert (pool.stats().chunks, pool.stats().dirty_bytes) == (0, 0)


async def test_prefetched_chunks_are_there_when_they_are_wanted(open_pool):
    source = Shelf()
    keys = [source.add(n) for n in range(4)]
    async with open_pool(source) as pool:
        assert pool.prefetch([ChunkWanted(key) for key in keys]) == 4
        await asyncio.wait(pool._prefetches)
        assert pool.longest_prefix([ChunkWanted(key) for key in keys]) == 4
        source.gate.clear()
        counts = [pool.prefetch([ChunkWanted(key_of(n)), ChunkWanted(keys[0])]) for n in range(50, 56)]
        assert counts == [2, 2, 2, 2, 1, 1]
        assert pool.stats().prefetches_dropped == 2
        source.gate.set()


async def test_a_closed_pool_has_stored_what_it_could_and_takes_nothing(open_pool):
    source = Shelf()
    kv = draw_kv(PLAIN, PAGE_TOKENS, 1)
    async with open_pool(source) as pool:
        for number in range(3):
            await pool.put(ChunkWanted(key_of(number), first_position=0), kv.keys, kv.values, encoding=Encoding())
        lease = await leased(pool, ChunkWanted(key_of(0)))
        await pool.close()
        await pool.close()
        assert len(source.stored) == 3
        lease.release()
        with pytest.raises(StorageUnavailable, match="closed"):
            await pool.get(ChunkWanted(key_of(0)))
        with pytest.raises(StorageUnavailable, match="closed"):
            pool.prefetch([])


async def test_the_journal_says_what_came_went_and_was_used(open_pool):
    source = Shelf()
    keys = [source.add(n) for n in range(3)]
    async with open_pool(source, pages=2) as pool:
        await touch(pool, ChunkWanted(keys[0]))
        pool.watch()
        assert pool.take_changes(everything=True) == Changes(frozenset(keys[:1]))
        for number in (1, 0, 2):
            await touch(pool, ChunkWanted(keys[number]))
        assert pool.take_changes() == Changes(frozenset(keys[2:]), frozenset(), frozenset(keys[:1]))
        await touch(pool, ChunkWanted(keys[2], first_position=9))
        assert pool.take_changes() == Changes(frozenset(), frozenset(keys[:1]), frozenset())
        pool.forget(ChunkWanted(keys[2], first_position=9))
        assert pool.take_changes() == Changes(), "it is there at its other position"
        assert pool.take_changes(everything=True).added == {keys[2]}


class Full(HostArrays):
    def free_bytes(self):
        return 5000

    def empty(self, count, dtype):
        raise AssertionError("allocated before it was known to fit")


@pytest.mark.parametrize(
    ("limit_bytes", "message"),
    [
        (5200, "pool of 5120 bytes asked for, host has 5000 free"),
        (900, "pool of 900 bytes has no room for one page of 1024"),
    ],
)
def test_memory_that_is_not_there_is_not_asked_for(limit_bytes, message):
    with pytest.raises(ConfigError, match=message):
        DecodedPool(PLAIN, Shelf(), limit_bytes=limit_bytes, arrays=Full(), rules=PoolRules(page_tokens=4))


@pytest.mark.parametrize("page_tokens", [0, 5000])
def test_pages_have_a_size_that_makes_sense(page_tokens):
    with pytest.raises(ConfigError, match=f"page of {page_tokens} tokens"):
        DecodedPool(PLAIN, Shelf(), limit_bytes=10**6, rules=PoolRules(page_tokens=page_tokens))


async def test_two_who_compute_the_same_chunk_fill_it_once(open_pool):
    source = Shelf()
    kv = draw_kv(PLAIN, 6, 1)
    wanted = ChunkWanted(key_of(1), first_position=0)
    async with open_pool(source) as pool:
        await asyncio.gather(*(pool.put(wanted, kv.keys, kv.values, encoding=Encoding()) for _ in range(3)))
        await pool.drained()
        assert pool.stats().chunks == 1
        assert pool.stats().used_bytes == 2 * pool.stats().page_bytes
        assert set(source.stored) == {key_of(1)}


async def test_two_who_want_the_same_new_position_have_it_turned_once(open_pool):
    source = Shelf()
    key = source.add(1)
    async with open_pool(source) as pool:
        await touch(pool, ChunkWanted(key))
        again = ChunkWanted(key, first_position=5, attributes=ChunkAttributes(start=5))
        leases = await asyncio.gather(leased(pool, ChunkWanted(key, first_position=5)), leased(pool, again))
        assert leases[0].chunk is leases[1].chunk
        for lease in leases:
            lease.release()
        assert pool.stats().chunks == 2
