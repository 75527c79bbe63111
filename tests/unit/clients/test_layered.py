"""Chunks decoded layer by layer behind whoever asks for them: in turn, waited for, given up."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="caches hold torch tensors")

from kvloom import codec  # noqa: E402
from kvloom.blend.cache import KvCache  # noqa: E402
from kvloom.clients.arrivals import ChunkPlace, LoadOrder  # noqa: E402
from kvloom.clients.layered import LayeredDecoding  # noqa: E402
from kvloom.codec.container import Container, select  # noqa: E402
from kvloom.codec.layout import Layout, Rope  # noqa: E402
from kvloom.codec.level import EXACT  # noqa: E402
from kvloom.errors import InvalidData, StorageUnavailable  # noqa: E402
from kvloom.kvstore.key import ChunkRef  # noqa: E402

LAYERS, TOKENS, HEADS, DIM = 14, 9, 2, 8
LATE = 20.0
"""Only what hangs waits so long."""
LAYOUT = Layout.uniform(layers=LAYERS, kv_heads=HEADS, head_dim=DIM, rope=Rope((1.0, 0.1, 0.01, 0.001)))


class Decoder:
    """Decodes as the codec does, when it may; what it was asked for is in ``asked``."""

    def __init__(self, cache):
        self.cache, self.asked = cache, []
        self.may_go_on = threading.Semaphore(10_000)
        self.error = None

    def __call__(self, order, container, layers):
        assert self.may_go_on.acquire(timeout=LATE)
        self.asked.append((order.place.start, layers))
        if isinstance(self.error, Exception):
            raise self.error
        arrays = [self.cache.layer_arrays(layer) for layer in range(LAYERS)]
        span = slice(order.place.start, order.place.stop)
        keys, values = [item.keys[:, span] for item in arrays], [item.values[:, span] for item in arrays]
        codec.decode_into(
            container, keys, values, level=EXACT, layout=LAYOUT, first_position=order.place.start, layers=layers
        )
        return True


@pytest.fixture
def chunks():
    """Orders, their containers and what is in them."""
    generator = np.random.default_rng(6)
    found = []
    for number in range(3):
        keys, values = generator.standard_normal((2, LAYERS, HEADS, TOKENS, DIM)).astype(np.float32)
        start = 2 + number * TOKENS
        blob = codec.encode(keys, values, layout=LAYOUT, first_position=start, levels=[EXACT])
        ref = ChunkRef(os.urandom(32), 0, TOKENS)
        found.append((LoadOrder(ChunkPlace(ref, start), EXACT), Container.parse(blob), keys, values))
    return found


@pytest.fixture
def cache():
    return KvCache(LAYOUT, 2 + 3 * TOKENS)


@pytest.fixture
def decoder(cache):
    return Decoder(cache)


@pytest.fixture
def decoding(decoder):
    with ThreadPoolExecutor(1) as workers:
        made = LayeredDecoding(workers, decoder, layers=LAYERS, token_bytes=LAYOUT.bytes_per_token)
        yield made
        made.close()


def test_every_layer_is_there_when_it_is_taken(decoding, chunks, cache):
    for order, container, _, _ in reversed(chunks):
        assert decoding.add(order, container)
    decoding.start()
    views = [decoding.layers_of(order.place, cache) for order, *_ in chunks]
    for layer in range(LAYERS):
        for (keys, values), (_, _, true_keys, true_values) in zip(views, chunks, strict=True):
            np.testing.assert_array_equal(keys[layer], true_keys[layer])
            np.testing.assert_array_equal(values[layer], true_values[layer])
    assert len(views[0][0]) == LAYERS
    assert len(views[0][0][2:5]) == 3
    assert sum(work.size_bytes for work in decoding.measured()) == 3 * TOKENS * LAYOUT.bytes_per_token // 14 * 14


def test_early_layers_of_all_chunks_come_before_later_ones_of_any(decoding, decoder, chunks):
    for order, container, _, _ in chunks:
        decoding.add(order, container)
    decoding.start()
    decoding.finish()
    starts = [order.place.start for order, *_ in chunks]
    parts = [range(6), range(6, 12), range(12, 14)]
    assert decoder.asked == [(start, part) for part in parts for start in starts]


def test_a_layer_is_had_while_later_ones_are_not_decoded(decoding, decoder, chunks, cache):
    decoder.may_go_on = threading.Semaphore(3)
    for order, container, _, _ in chunks:
        decoding.add(order, container)
    decoding.start()
    keys, _ = decoding.layers_of(chunks[2][0].place, cache)
    np.testing.assert_array_equal(keys[5], chunks[2][2][5])
    assert len(decoder.asked) == 3
    decoder.may_go_on.release(100)
    np.testing.assert_array_equal(keys[13], chunks[2][2][13])


@pytest.mark.parametrize("how", ["refuses", "raises"])
def test_what_cannot_be_decoded_ends_the_wait_with_the_reason(decoding, decoder, chunks, how):
    decoder.error = InvalidData("damaged") if how == "raises" else None
    if how == "refuses":
        decoding._decode = lambda *_: False
    for order, container, _, _ in chunks:
        decoding.add(order, container)
    decoding.start()
    with pytest.raises(StorageUnavailable, match="layers 0 on of the chunk at 2 cannot be decoded"):
        decoding.wait(chunks[1][0].place, 8)
    with pytest.raises(StorageUnavailable):
        decoding.finish()


def test_nothing_is_written_after_close(decoding, decoder, chunks, cache):
    decoder.may_go_on = threading.Semaphore(1)
    for order, container, _, _ in chunks:
        decoding.add(order, container)
    decoding.start()
    decoding.wait(chunks[0][0].place, 0)
    closing = threading.Thread(target=decoding.close)
    closing.start()
    decoder.may_go_on.release(1)  # for the piece that may be under way
    closing.join(LATE)
    assert not closing.is_alive()
    count = len(decoder.asked)
    decoder.may_go_on.release(100)
    assert count <= 2
    with pytest.raises(StorageUnavailable, match="not wanted"):
        decoding.wait(chunks[2][0].place, 13)
    assert len(decoder.asked) == count


def test_a_chunk_of_other_length_or_with_some_layers_only_is_not_taken(decoding, chunks):
    order, container, _, _ = chunks[0]
    longer = LoadOrder(ChunkPlace(ChunkRef(os.urandom(32), 0, TOKENS + 1), 2), EXACT)
    assert not decoding.add(longer, container)
    some = select(container.header, layers=range(6))
    parts = [bytes(container.data[part.start : part.stop]) for part in some.ranges]
    assert not decoding.add(order, Container.parse(bytes(some.header) + b"".join(parts)))
    decoding.start()
    decoding.finish()
