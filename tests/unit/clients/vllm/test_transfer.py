"""KV out of an engine's blocks and back: whatever order a backend keeps it in, bit for bit, or refused."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model

from blake3 import blake3  # noqa: E402

from kvloom import codec  # noqa: E402
from kvloom.clients.sequence import SequenceChunks  # noqa: E402
from kvloom.clients.vllm.blocks import block_spans  # noqa: E402
from kvloom.clients.vllm.decoding import ChunkDecoder  # noqa: E402
from kvloom.clients.vllm.load_job import FinishedLoad  # noqa: E402
from kvloom.clients.vllm.loading import ChunkLoader  # noqa: E402
from kvloom.clients.vllm.pages import ChunkArrays, KvPages, find_pages  # noqa: E402
from kvloom.clients.vllm.parts import LayerPart, parts_of, shard_identities  # noqa: E402
from kvloom.clients.vllm.plan import BlockTables, PlacedChunk, RequestLoad, place  # noqa: E402
from kvloom.clients.vllm.saving import ChunkSaver  # noqa: E402
from kvloom.codec.container import Container  # noqa: E402
from kvloom.codec.layout import KvDtype, Layout  # noqa: E402
from kvloom.codec.level import EXACT, STANDARD  # noqa: E402
from kvloom.errors import StorageUnavailable, UnsupportedModel  # noqa: E402
from kvloom.kvstore.key import ModelIdentity  # noqa: E402
from kvloom.kvstore.outcome import Hit, Miss, Unavailable  # noqa: E402

HEADS, BLOCK, DIM, BLOCKS = 2, 16, 8, 10
WAIT_SECONDS = 60.0


def whole(start: int, stop: int, table: Sequence[int] | None = None) -> PlacedChunk:
    """Those tokens as one chunk."""
    return PlacedChunk((), None, start, stop - start, (tuple(block_spans(table or TABLE, BLOCK, start, stop)),))


def keys_transposed(keys: Any, values: Any, cache: Any, slots: Any) -> None:
    """As vLLM's CPU backend: keys ``[heads, head_dim, tokens]``, then values ``[heads, tokens, head_dim]``, by head."""
    halves = cache.view(cache.shape[0], HEADS, 2, BLOCK * DIM)
    for row, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, BLOCK)
        halves[block, :, 0].view(HEADS, DIM, BLOCK)[:, :, offset] = keys[row]
        halves[block, :, 1].view(HEADS, BLOCK, DIM)[:, offset] = values[row]


def beside_each_other(keys: Any, values: Any, cache: Any, slots: Any) -> None:
    """As the logical shape says: each token's keys, then its values."""
    for row, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, BLOCK)
        cache[block, :, offset, :DIM] = keys[row]
        cache[block, :, offset, DIM:] = values[row]


def new_cache(dtype: Any = torch.float32, *, tokens_first: bool = False) -> Any:
    shape = (BLOCKS, BLOCK, HEADS, 2 * DIM) if tokens_first else (BLOCKS, HEADS, BLOCK, 2 * DIM)
    cache = torch.randn(shape).to(dtype)
    return cache.transpose(1, 2) if tokens_first else cache


@pytest.mark.parametrize("dtype", [KvDtype.FLOAT32, KvDtype.BFLOAT16, KvDtype.FLOAT16])
@pytest.mark.parametrize(
    ("write", "tokens_first"), [(keys_transposed, False), (beside_each_other, False), (beside_each_other, True)]
)
def test_tokens_are_found_wherever_the_backend_writes_them(
    dtype: KvDtype, write: Callable[..., None], tokens_first: bool
) -> None:
    layout = Layout.uniform(layers=1, kv_heads=HEADS, head_dim=DIM, dtype=dtype)
    cache = new_cache(getattr(torch, dtype.value), tokens_first=tokens_first)
    before = cache.clone()
    pages = KvPages([find_pages("layer 0", cache, layout.layers[0], BLOCK, write)])
    assert torch.equal(cache, before)
    keys, values = (torch.randn(40, HEADS, DIM).to(cache.dtype) for _ in range(2))
    table = [7, 2, 5]
    slots = torch.tensor([table[token // BLOCK] * BLOCK + token % BLOCK for token in range(3, 43)])
    write(keys, values, cache, slots)
    arrays = ChunkArrays.empty(layout, 40)
    pages.copy_out(whole(3, 43, table), arrays)
    assert torch.equal(arrays.keys[0], keys.transpose(0, 1))
    assert torch.equal(arrays.values[0], values.transpose(0, 1))
    other = new_cache(cache.dtype, tokens_first=tokens_first)
    KvPages([find_pages("layer 0", other, layout.layers[0], BLOCK, write)]).copy_in(whole(3, 43, [1, 8, 4]), arrays)
    expected = other.clone()
    write(
        keys,
        values,
        expected,
        torch.tensor([[1, 8, 4][token // BLOCK] * BLOCK + token % BLOCK for token in range(3, 43)]),
    )
    assert torch.equal(other, expected)


def scaled(keys: Any, values: Any, cache: Any, slots: Any) -> None:
    beside_each_other(keys * 1.5, values, cache, slots)


def paired(keys: Any, values: Any, cache: Any, slots: Any) -> None:
    """Two tokens' numbers in turn, as for instructions that multiply pairs."""
    order = [token // 2 * 2 * DIM + dim * 2 + token % 2 for token in range(BLOCK) for dim in range(DIM)]
    halves = cache.view(cache.shape[0], HEADS, 2, BLOCK * DIM)
    for row, slot in enumerate(slots.tolist()):
        block, offset = divmod(slot, BLOCK)
        halves[block, :, 0, order[offset * DIM : offset * DIM + DIM]] = keys[row]
        halves[block, :, 1].view(HEADS, BLOCK, DIM)[:, offset] = values[row]


@pytest.mark.parametrize(
    ("write", "shape", "why"),
    [
        (scaled, (BLOCKS, HEADS, BLOCK, 2 * DIM), "number by number|changes what it stores"),
        (paired, (BLOCKS, HEADS, BLOCK, 2 * DIM), "no strides describe"),
        (beside_each_other, (2, BLOCKS, HEADS, BLOCK, DIM), "shape"),
        (beside_each_other, (BLOCKS, HEADS + 1, BLOCK, 2 * DIM), "shape"),
        (beside_each_other, (BLOCKS, HEADS, BLOCK, DIM), "shape"),
    ],
)
def test_what_is_no_plain_order_is_refused_with_the_reason(
    write: Callable[..., None], shape: tuple[int, ...], why: str
) -> None:
    layer = Layout.uniform(layers=1, kv_heads=HEADS, head_dim=DIM).layers[0]
    with pytest.raises(UnsupportedModel, match=rf"layer 0.*({why})"):
        find_pages("layer 0", torch.zeros(shape), layer, BLOCK, write)


LAYOUT = Layout.uniform(layers=3, kv_heads=HEADS, head_dim=DIM)
TOKENS = list(range(100))
TABLE = [9, 1, 6, 3, 8, 2, 4]
TABLES = BlockTables((TABLE,), (BLOCK,))
(PART,) = parts_of(LAYOUT, 0)
WHO = ModelIdentity(blake3(b"model").digest(), LAYOUT.digest())


def placed() -> list[PlacedChunk]:
    """Chunks of 32 tokens and a tail of 4, in blocks of 16."""
    chunks = SequenceChunks([WHO], 32)
    return [place(chunk, TABLES) for chunk in [*chunks.full(TOKENS), chunks.tail(TOKENS, 100)] if chunk]


def new_engine() -> tuple[list[Any], KvPages]:
    caches = [new_cache() for _ in LAYOUT.layers]
    found = [find_pages("layer", cache, LAYOUT.layers[0], BLOCK, keys_transposed) for cache in caches]
    return caches, KvPages(found)


class Store(dict[bytes, bytes]):
    """Containers by key, as a daemon has them."""

    def __init__(self) -> None:
        super().__init__()
        self.parents: dict[bytes, bytes | None] = {}

    def store(self, key: bytes, data: bytes, parent: bytes | None) -> None:
        self[key] = data
        self.parents[key] = parent

    def load(self, key: bytes) -> Any:
        return Hit(Container.parse(self[key], content_key=key), "memory") if key in self else Miss()


def save_all(pages: KvPages, store: Store, level: Any = EXACT, profile: Any = None) -> None:
    saver = ChunkSaver(pages, [PART], {level}, store.store, profile=profile)
    assert all(saver.save(chunk, PART) for chunk in placed())
    saver.close(WAIT_SECONDS)
    counts = saver.take_counts()
    assert (counts.saves, counts.saved_tokens, counts.saved_bytes) == (4, 100, sum(map(len, store.values())))


def nobody(digest: bytes) -> Any:
    raise AssertionError(f"profile {digest.hex()[:16]} was asked for")


def new_loader(
    pages: KvPages,
    level: Any,
    get: Callable[[bytes], Any],
    find_profile: Any = nobody,
    *,
    parts: Sequence[LayerPart] = (PART,),
    exists: Callable[[Sequence[bytes]], list[bool]] = lambda keys: [False] * len(keys),
    **options: Any,
) -> ChunkLoader:
    chosen = {"seconds_max": WAIT_SECONDS, "threads": 2, **options}
    decoder = ChunkDecoder((part.layout for part in parts), level, find_profile)
    return ChunkLoader(pages, parts, get, decoder, exists=exists, **chosen)


def load_all(
    pages: KvPages, get: Callable[[bytes], Any], level: Any = EXACT, find_profile: Any = nobody
) -> FinishedLoad:
    loader = new_loader(pages, level, get, find_profile)
    loader.start(RequestLoad("request", tuple(placed())))
    try:
        while not (finished := loader.take_finished()):
            loader.wait(WAIT_SECONDS)
    finally:
        loader.close()
    return finished[0]


def same_tokens(ours: KvPages, theirs: KvPages, tokens: int) -> bool:
    spans = whole(0, tokens)
    one, other = ChunkArrays.empty(LAYOUT, tokens), ChunkArrays.empty(LAYOUT, tokens)
    ours.copy_out(spans, one)
    theirs.copy_out(spans, other)
    return all(map(torch.equal, (*one.keys, *one.values), (*other.keys, *other.values)))


def test_what_was_saved_comes_back_bit_for_bit_and_nothing_else_is_touched() -> None:
    (_, saved), (caches, pages), store = new_engine(), new_engine(), Store()
    save_all(saved, store)
    assert store.parents[placed()[2].keys[0]] == placed()[1].keys[0]
    before = [cache.clone() for cache in caches]
    finished = load_all(pages, store.load)
    assert (finished.tokens, finished.failed_start, finished.failed_blocks) == (100, None, frozenset())
    assert finished.bytes_read == sum(map(len, store.values()))
    assert same_tokens(saved, pages, 100)
    untouched = [block for block in range(BLOCKS) if block not in TABLE]
    assert all(torch.equal(one[untouched], other[untouched]) for one, other in zip(caches, before, strict=True))
    rest = KvPages([find_pages("layer", cache, LAYOUT.layers[0], BLOCK, keys_transposed) for cache in before])
    spans, now, then = whole(100, 112), *(ChunkArrays.empty(LAYOUT, 12) for _ in range(2))
    pages.copy_out(spans, now)
    rest.copy_out(spans, then)
    assert all(map(torch.equal, (*now.keys, *now.values), (*then.keys, *then.values)))


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_lossy_level_comes_back_close_with_the_profile_it_was_coded_with(calibrated: bool) -> None:
    (_, saved), (_, pages), store = new_engine(), new_engine(), Store()
    profile = None
    if calibrated:
        seen = ChunkArrays.empty(LAYOUT, 100)
        saved.copy_out(whole(0, 100), seen)
        profile = codec.calibrate([codec.KvSample(*seen.numpy)], LAYOUT, kl_target=1e-3)
    save_all(saved, store, STANDARD, profile)
    used = {Container.parse(data).header.profile_digest for data in store.values()}
    found = {} if profile is None else {profile.digest: profile}
    assert used == (set(found) or {codec.generic_profile(LAYOUT).digest})
    find_profile = found.get if calibrated else nobody
    assert load_all(pages, store.load, STANDARD, find_profile).failed_start is None
    if calibrated:
        assert load_all(pages, store.load, STANDARD, lambda _: None).failed_start == 0
    one, other = ChunkArrays.empty(LAYOUT, 100), ChunkArrays.empty(LAYOUT, 100)
    spans = whole(0, 100)
    saved.copy_out(spans, one)
    pages.copy_out(spans, other)
    for ours, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        assert 0 < float((ours - theirs).pow(2).mean()) < 0.05


@pytest.mark.parametrize("lost", [0, 2, 3])
def test_a_chunk_that_does_not_come_loses_what_follows_it_and_nothing_before(lost: int) -> None:
    (_, saved), (_, pages), store = new_engine(), new_engine(), Store()
    save_all(saved, store)
    del store[placed()[lost].keys[0]]
    finished = load_all(pages, store.load)
    assert finished.failed_start == 32 * lost
    assert finished.failed_blocks == {block for chunk in placed()[lost:] for block in chunk.blocks}
    assert not finished.silent
    assert lost == 0 or same_tokens(saved, pages, 32 * lost)


def test_a_chunk_of_another_layout_level_or_length_is_not_taken() -> None:
    (_, saved), (_, pages), store = new_engine(), new_engine(), Store()
    save_all(saved, store)
    chunk = placed()[1]
    for tokens, layout, start in (
        (32, Layout.uniform(layers=3, kv_heads=HEADS, head_dim=DIM, dtype=KvDtype.BFLOAT16), 32),
        (31, LAYOUT, 32),
        (32, LAYOUT, 0),
    ):
        keys, values = ChunkArrays.empty(layout, tokens).numpy
        store[chunk.keys[0]] = codec.encode(
            keys, values, layout=layout, levels={EXACT}, content_key=chunk.keys[0], first_position=start
        )
        assert load_all(pages, store.load).failed_start == 32
    assert load_all(pages, store.load, STANDARD).failed_start == 0


def test_a_request_whose_time_is_up_is_given_up_and_its_blocks_are_not_written_to_any_more() -> None:
    (_, saved), (caches, pages), store = new_engine(), new_engine(), Store()
    save_all(saved, store)
    asked, go_on = threading.Event(), threading.Event()

    def frozen(key: bytes) -> Any:
        asked.set()
        assert go_on.wait(WAIT_SECONDS)
        return store.load(key)

    now = [0.0]
    loader = new_loader(pages, EXACT, frozen, seconds_max=5.0, clock=lambda: now[0])
    loader.start(RequestLoad("request", tuple(placed())))
    assert asked.wait(WAIT_SECONDS)
    assert loader.take_finished() == []
    before = [cache.clone() for cache in caches]
    now[0] = 5.0
    (finished,) = loader.take_finished()
    assert (finished.failed_start, finished.silent, finished.tokens) == (0, True, 0)
    assert finished.failed_blocks == set(TABLE)
    assert not loader.busy
    go_on.set()
    loader.close()
    loader._pool.shutdown(wait=True)
    assert all(map(torch.equal, caches, before))


def test_a_daemon_that_is_gone_is_told_from_a_chunk_that_is_not_there() -> None:
    _, pages = new_engine()
    assert load_all(pages, lambda _: Unavailable("daemon", "gone")).silent
    assert not load_all(pages, lambda _: Miss()).silent


def test_a_full_queue_drops_and_says_so_and_a_daemon_that_refuses_costs_nothing_else() -> None:
    _, pages = new_engine()
    chunk_bytes = 32 * LAYOUT.bytes_per_token
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        begun.set()
        assert go_on.wait(WAIT_SECONDS)
        raise StorageUnavailable("the tests' daemon has no room")

    saver = ChunkSaver(pages, [PART], {EXACT}, slow, queue_bytes_max=2 * chunk_bytes)
    assert saver.save(placed()[0], PART)
    assert begun.wait(WAIT_SECONDS)
    assert saver.save(placed()[1], PART)
    assert not saver.save(placed()[2], PART)
    go_on.set()
    assert saver.drain(WAIT_SECONDS)
    counts = saver.take_counts()
    assert (counts.saves, counts.failed_saves, counts.dropped_saves) == (0, 2, 1)
    saver.close(WAIT_SECONDS)
    assert not saver.save(placed()[0], PART)


PARTS = parts_of(LAYOUT, 2)
"""Layers 0 and 1, and layer 2."""


def placed_parts() -> list[PlacedChunk]:
    chunks = SequenceChunks(shard_identities(WHO.fingerprint, [LAYOUT], 2), 32)
    return [place(chunk, TABLES) for chunk in [*chunks.full(TOKENS), chunks.tail(TOKENS, 100)] if chunk]


def save_parts(pages: KvPages, store: Store) -> None:
    saver = ChunkSaver(pages, PARTS, {EXACT}, store.store)
    assert all(saver.save(chunk, part) for part in PARTS for chunk in placed_parts())
    saver.close(WAIT_SECONDS)
    counts = saver.take_counts()
    assert (counts.saves, counts.saved_tokens, counts.saved_bytes) == (4, 100, sum(map(len, store.values())))


def test_layers_that_are_stored_in_parts_come_back_bit_for_bit() -> None:
    (_, saved), (_, pages), store = new_engine(), new_engine(), Store()
    save_parts(saved, store)
    assert len(store) == 2 * len(placed_parts())
    loader = new_loader(pages, EXACT, store.load, parts=PARTS)
    loader.start(RequestLoad("request", tuple(placed_parts())))
    while not (finished := loader.take_finished()):
        loader.wait(WAIT_SECONDS)
    loader.close()
    assert (finished[0].tokens, finished[0].failed_start) == (100, None)
    assert same_tokens(saved, pages, 100)


def test_a_step_goes_on_as_its_layers_come_and_waits_for_no_other() -> None:
    (_, saved), (_, pages), store = new_engine(), new_engine(), Store()
    save_parts(saved, store)
    last = {chunk.keys[1] for chunk in placed_parts()}
    go_on = threading.Event()

    def late(key: bytes) -> Any:
        assert key not in last or go_on.wait(WAIT_SECONDS)
        return store.load(key)

    loader = new_loader(pages, EXACT, late, parts=PARTS)
    loader.start(RequestLoad("request", tuple(placed_parts()), by_layer=True))
    loader.wait_for_layer(0)
    loader.wait_for_layer(1)
    assert not go_on.is_set()
    first, other = (ChunkArrays.empty(PARTS[0].layout, 100) for _ in range(2))
    pages.copy_out(whole(0, 100), first, PARTS[0].layers)
    saved.copy_out(whole(0, 100), other, PARTS[0].layers)
    assert all(map(torch.equal, (*first.keys, *first.values), (*other.keys, *other.values)))
    go_on.set()
    loader.wait_for_layer(2)
    assert same_tokens(saved, pages, 100)
    (finished,) = loader.take_finished()
    assert (finished.failed_start, finished.by_layer) == (None, True)
    loader.close()


def test_a_layer_that_does_not_come_fails_its_load_within_the_step_that_reads_it() -> None:
    (_, saved), (_, pages), store = new_engine(), new_engine(), Store()
    save_parts(saved, store)
    del store[placed_parts()[1].keys[1]]
    loader = new_loader(pages, EXACT, store.load, parts=PARTS)
    loader.start(RequestLoad("request", tuple(placed_parts()), by_layer=True))
    for layer in range(3):
        loader.wait_for_layer(layer)
    (finished,) = loader.take_finished()
    assert finished.failed_start == 32
    assert finished.failed_blocks >= placed_parts()[1].blocks
    assert not loader.busy
    loader.close()


def test_what_another_engine_is_still_computing_is_awaited() -> None:
    (_, saved), (_, pages), done, store = new_engine(), new_engine(), Store(), Store()
    save_parts(saved, done)
    asked = threading.Event()

    def exists(keys: Sequence[bytes]) -> list[bool]:
        asked.set()
        return [key in store for key in keys]

    loader = new_loader(pages, EXACT, store.load, parts=PARTS, exists=exists)
    loader.start(RequestLoad("request", tuple(placed_parts()), awaited=True))
    assert asked.wait(WAIT_SECONDS)
    assert loader.take_finished() == []
    store.update(done)
    while not (finished := loader.take_finished()):
        loader.wait(WAIT_SECONDS)
    loader.close()
    assert finished[0].failed_start is None
    assert same_tokens(saved, pages, 100)


def test_what_is_awaited_too_long_is_computed_and_that_is_no_silence() -> None:
    _, pages = new_engine()
    asked, now = threading.Event(), [0.0]

    def exists(keys: Sequence[bytes]) -> list[bool]:
        asked.set()
        return [False] * len(keys)

    loader = new_loader(pages, EXACT, lambda _: Miss(), parts=PARTS, exists=exists, clock=lambda: now[0])
    loader.start(RequestLoad("request", tuple(placed_parts()), seconds_max=3.0, awaited=True))
    assert asked.wait(WAIT_SECONDS)
    now[0] = 3.0
    (finished,) = loader.take_finished()
    assert (finished.failed_start, finished.silent, finished.tokens) == (0, False, 0)
    loader.close()


def test_layers_of_a_group_without_blocks_for_a_chunk_are_left_alone() -> None:
    caches, pages = new_engine()
    before = [cache.clone() for cache in caches]
    grouped = KvPages([replace(layer, group=index % 2) for index, layer in enumerate(pages._layers)])
    spans = tuple(block_spans(TABLE, BLOCK, 0, 32))
    chunk = PlacedChunk((), None, 0, 32, (spans, ()))
    arrays = ChunkArrays.empty(LAYOUT, 32)
    for array in (*arrays.keys, *arrays.values):
        array.fill_(7.0)
    grouped.copy_in(chunk, arrays)
    assert torch.equal(caches[1], before[1])
    assert not torch.equal(caches[0], before[0])
    assert chunk.loaded_tokens == 32


def test_what_loads_took_is_told() -> None:
    (_, saved), (_, pages), store = new_engine(), new_engine(), Store()
    save_all(saved, store)
    finished = load_all(pages, store.load)
    assert sorted(item.size_bytes for item in finished.times) == sorted(map(len, store.values()))
    assert sum(item.kv_bytes for item in finished.times) == 100 * LAYOUT.bytes_per_token
    assert all(item.load_seconds >= 0 and item.decode_seconds > 0 for item in finished.times)
    assert {item.concurrent for item in finished.times} <= {1, 2}
