"""The GPU tier's pool over the kernels: lossy levels go from containers into pages, and back, without the host."""

import numpy as np
import pytest
from pool_source import FarArrays, Kv, Shelf, check_books, content, key_of, leased

from kvloom import codec
from kvloom.codec import EXACT, STANDARD, Container
from kvloom.kvstore.gpu import filling
from kvloom.kvstore.gpu.pool import DecodedPool, PoolRules
from kvloom.kvstore.gpu.source import ChunkWanted, Encoding
from kvloom.kvstore.outcome import Corrupt, Hit

LENGTHS = (70, 70, 1, 131)


@pytest.fixture
def arrays(device):
    """Memory that the kernels write to; the host's codec may not decode into it."""
    return type("KernelArrays", (FarArrays,), {"kernels": device})()


@pytest.fixture
def source(layout, profile, reference, draw_kv):
    shelf = Shelf(layout)
    for number, tokens in enumerate(LENGTHS):
        kv = draw_kv(tokens, number)
        shelf.containers[key_of(number)] = reference.encode(
            kv, profile, first_position=100 * number, content_key=key_of(number)
        )
    shelf.profile = lambda digest: profile if digest == profile.digest else None
    return shelf


@pytest.fixture
def pool(layout, source, arrays):
    rules = PoolRules(page_tokens=16, threads=2)
    return DecodedPool(layout, source, limit_bytes=24 * 16 * layout.bytes_per_token, arrays=arrays, rules=rules)


def expected(reference, source, profile, number, level, first_position=None):
    container = Container.parse(source.containers[key_of(number)])
    return Kv(*reference.decode(container, profile, level=str(level), first_position=first_position))


async def test_a_batch_of_chunks_is_decoded_into_pages_by_one_call(pool, source, profile, reference, monkeypatch):
    calls = []
    decode = filling.decode_into_pages
    monkeypatch.setattr(
        filling, "decode_into_pages", lambda *args, **options: (calls.append(len(args[0])), decode(*args, **options))
    )
    monkeypatch.setattr(filling, "decode_into", None)
    for level in (STANDARD, codec.DRAFT):
        outcomes = await pool.get_many([ChunkWanted(key_of(number), level) for number in range(len(LENGTHS))])
        for number, outcome in enumerate(outcomes):
            assert content(pool, outcome.value).same_as(expected(reference, source, profile, number, level))
            outcome.value.release()
        check_books(pool)
    assert calls == [4, 4]
    with await leased(pool, ChunkWanted(key_of(1), codec.FINE, first_position=9)) as lease:
        assert content(pool, lease).same_as(expected(reference, source, profile, 1, codec.FINE, 9))
    await pool.close()


async def test_the_damaged_one_of_a_batch_is_found_and_the_others_stay(pool, source, profile, reference, monkeypatch):
    blob = bytearray(source.containers[key_of(1)])
    blob[-400:] = bytes(400)
    whole = {number: Container.parse(source.containers[key_of(number)]) for number in range(len(LENGTHS))}
    whole[1] = Container(whole[1].header, memoryview(bytes(blob)))
    source.load = lambda keys, level: [Hit(whole[n], "memory") for n in range(len(LENGTHS)) if key_of(n) in keys]
    outcomes = await pool.get_many([ChunkWanted(key_of(number), codec.FINE) for number in range(len(LENGTHS))])
    assert isinstance(outcomes[1], Corrupt)
    for number in (0, 2, 3):
        assert content(pool, outcomes[number].value).same_as(expected(reference, source, profile, number, codec.FINE))
        outcomes[number].value.release()
    assert pool.stats().chunks == 3
    check_books(pool)
    await pool.close()


async def test_what_was_computed_is_encoded_from_pages(pool, source, profile, reference, draw_kv):
    kv = draw_kv(40, 9)
    wanted = ChunkWanted(key_of(9), EXACT, 300)
    assert await pool.put(wanted, kv.keys, kv.values, encoding=Encoding(profile.levels, profile))
    await pool.drained()
    assert source.containers[key_of(9)] == reference.encode(kv, profile, first_position=300, content_key=key_of(9))
    with await leased(pool, wanted) as lease:
        assert content(pool, lease).same_as(kv)
    await pool.close()


async def test_exact_is_decoded_on_the_host(pool, source, layout, draw_kv):
    kv = draw_kv(20, 4)
    source.containers[key_of(8)] = codec.encode(kv.keys, kv.values, layout=layout, content_key=key_of(8))
    with await leased(pool, ChunkWanted(key_of(8))) as lease:
        assert content(pool, lease).same_as(kv)
        assert np.array_equal(lease.pages, [0, 1])
    await pool.close()
