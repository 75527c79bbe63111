"""The exact level: every bit comes back, little is stored, and bytes that are not a segment are refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvloom.codec import KvDtype, lossless
from kvloom.codec.entropy import native
from kvloom.codec.lossless import decode_exact, encode_exact
from kvloom.codec.planes import FORMS
from kvloom.errors import InvalidData

pytestmark = pytest.mark.filterwarnings("ignore:kvloom's compiled core is not installed")
EXECUTIONS = sorted({native.AVAILABLE, False})
every_dtype = pytest.mark.parametrize("dtype", list(KvDtype))


def kv_like(dtype: KvDtype, shape=(2, 64, 16), seed: int = 1) -> np.ndarray:
    """Channels of very different scale and offset, as keys and values have them."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(shape[0], 1, shape[2])))
    offset = rng.normal(size=scale.shape) * (rng.random(scale.shape) < 0.3) * 4
    return (scale * (rng.laplace(size=shape) + offset)).astype(dtype.numpy)


def decoded(payload: bytes, shape, dtype: KvDtype) -> np.ndarray:
    out = np.empty(shape, dtype.numpy)
    decode_exact([memoryview(payload)], [out], dtype)
    return out


@st.composite
def any_bits(draw):
    """A tensor of ordinary numbers among which some have any bits at all."""
    dtype = draw(st.sampled_from(list(KvDtype)))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 20)))
    tensor = kv_like(dtype, shape, draw(st.integers(0, 2**32)))
    bits = tensor.view(FORMS[dtype].word).reshape(-1)
    patterns = st.integers(0, 2 ** FORMS[dtype].bits - 1)
    for place, pattern in draw(st.dictionaries(st.integers(0, bits.size - 1), patterns, max_size=12)).items():
        bits[place] = pattern
    return dtype, tensor


@given(any_bits())
def test_every_bit_comes_back(drawn):
    dtype, tensor = drawn
    (payload,) = encode_exact([tensor], dtype)
    with pytest.MonkeyPatch.context() as patch:
        for available in EXECUTIONS:
            patch.setattr(native, "AVAILABLE", available)
            assert encode_exact([tensor], dtype) == [payload]
            assert decoded(payload, tensor.shape, dtype).tobytes() == tensor.tobytes()


@every_dtype
def test_every_pattern_of_sixteen_bits(dtype):
    """All values of the narrow dtypes (and of the upper half of float32): NaN payloads, infinities, -0, denormals."""
    word = FORMS[dtype].word
    bits = np.arange(2**16, dtype=np.uint32)
    tensor = (bits << 16 if word.itemsize == 4 else bits).astype(word).reshape(4, 256, 64).view(dtype.numpy)
    (payload,) = encode_exact([tensor], dtype)
    assert decoded(payload, tensor.shape, dtype).tobytes() == tensor.tobytes()


@every_dtype
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-6])
def test_special_values_among_others(dtype, special):
    tensor = kv_like(dtype)
    tensor[0, 3:5, 2] = special
    tensor[1, :, 7] = special
    (payload,) = encode_exact([tensor], dtype)
    assert payload[0] == 1
    assert decoded(payload, tensor.shape, dtype).tobytes() == tensor.tobytes()


@every_dtype
def test_a_constant_costs_its_mantissa_only(dtype):
    tensor = np.full((2, 256, 16), -1.5, dtype.numpy)
    (payload,) = encode_exact([tensor], dtype)
    assert decoded(payload, tensor.shape, dtype).tobytes() == tensor.tobytes()
    assert len(payload) < FORMS[dtype].rest_bytes(tensor.size) + 64


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 64), (3, 2, 64), (2, 33, 16), (2, 512, 64)])
def test_noise_costs_little_more_than_raw(dtype, shape):
    word = FORMS[dtype].word
    bits = np.random.default_rng(3).integers(0, 2 ** (8 * word.itemsize), shape, dtype=np.uint64).astype(word)
    (payload,) = encode_exact([bits.view(dtype.numpy)], dtype)
    assert len(payload) <= 16 + 1.01 * bits.nbytes
    assert decoded(payload, shape, dtype).tobytes() == bits.tobytes()


@pytest.mark.parametrize(
    ("dtype", "least"), [(KvDtype.BFLOAT16, 1.45), (KvDtype.FLOAT16, 1.15), (KvDtype.FLOAT32, 1.17)]
)
def test_kv_gets_smaller(dtype, least):
    tensor = kv_like(dtype, (3, 256, 64))
    assert tensor.nbytes / len(encode_exact([tensor], dtype)[0]) > least


@every_dtype
@pytest.mark.parametrize("tokens", range(1, 33, 5))
def test_few_tokens_do_not_blow_up(dtype, tokens):
    tensor = kv_like(dtype, (3, tokens, 64))
    assert len(encode_exact([tensor], dtype)[0]) <= tensor.nbytes + 4


def test_channels_that_differ_get_tables_of_their_own():
    """Two kinds of channels in one segment cost hardly more than each kind in a segment of its own."""
    rng = np.random.default_rng(5)
    small, large = (
        (scale * rng.normal(size=(1, 256, 32)) + offset).astype(np.float32) for scale, offset in ((0.1, 0), (1, 9))
    )
    together = encode_exact([np.concatenate([small, large], axis=2)], KvDtype.FLOAT32)[0]
    apart = [encode_exact([item], KvDtype.FLOAT32)[0] for item in (small, large)]
    assert together[2] >= 2
    assert len(together) < sum(map(len, apart)) + 100


@every_dtype
def test_more_segments_than_one_batch_of_unlike_shapes(dtype):
    tensors = [kv_like(dtype, (1 + i % 3, 7 * i + 1, 8), seed=i) for i in range(2 * lossless.BATCH_SEGMENTS + 3)]
    tensors[5][:] = 0
    payloads = encode_exact(tensors, dtype)
    outputs = [np.empty_like(item) for item in tensors]
    decode_exact([memoryview(item) for item in payloads], outputs, dtype)
    for found, expected in zip(outputs, tensors, strict=True):
        assert found.tobytes() == expected.tobytes()


@every_dtype
def test_outputs_of_any_strides(dtype, monkeypatch):
    values = kv_like(dtype, (2, 33, 8))
    values[0, 0, 0] = math.nan
    payload = memoryview(encode_exact([values], dtype)[0])
    raw = memoryview(bytes(4) + values.tobytes())
    for available in EXECUTIONS:
        monkeypatch.setattr(native, "AVAILABLE", available)
        assert encode_exact([np.asfortranarray(values)], dtype)[0] == payload
        for stored in (payload, raw):
            wide = np.zeros((2, 50, 8), dtype.numpy)
            for out in (np.empty_like(values), wide[:, 5:38], np.empty((8, 33, 2), dtype.numpy).transpose(2, 1, 0)):
                decode_exact([stored], [out], dtype)
                assert np.ascontiguousarray(out).tobytes() == values.tobytes()
            assert not wide[:, 38:].any()
            odd = np.frombuffer(bytearray(values.nbytes + 1), np.uint8)[1:].view(dtype.numpy).reshape(values.shape)
            decode_exact([stored], [odd], dtype)
            assert odd.tobytes() == values.tobytes()
            assert encode_exact([odd], dtype)[0] == payload


def outcome(payload: bytes, shape, dtype: KvDtype) -> bytes | None:
    try:
        return decoded(payload, shape, dtype).tobytes()
    except InvalidData:
        return None


@settings(max_examples=300)
@given(
    data=st.binary(max_size=200),
    mode=st.sampled_from([b"", b"\1", b"\1\0", b"\1\0\1\0\0\0\0\0\0\0\0\0"]),
    dtype=st.sampled_from(list(KvDtype)),
    values=st.integers(1, 30),
)
def test_hostile_bytes(data, mode, dtype, values):
    found = outcome(mode + data, (1, values, 1), dtype)
    if found is not None:
        # What decodes at all is KV: it codes again to something that decodes to the same bits.
        tensor = np.frombuffer(found, dtype.numpy).reshape(1, values, 1)
        assert decoded(encode_exact([tensor], dtype)[0], tensor.shape, dtype).tobytes() == found


@settings(max_examples=300)
@given(
    data=st.data(),
    dtype=st.sampled_from(list(KvDtype)),
    shape=st.sampled_from([(1, 5, 3), (2, 33, 4), (1, 300, 16)]),
    escapes=st.booleans(),
)
def test_mutated_segments_end_alike_in_every_execution(data, dtype, shape, escapes):
    """Damage is refused or decodes to other values, the same in every execution; a checksum plays no part."""
    tensor = kv_like(dtype, shape)
    if escapes:
        tensor[0, ::3, 1] = math.nan
    payload = bytearray(encode_exact([tensor], dtype)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        # The head and the tables are few bytes of many: they get half of the changes.
        place = data.draw(st.integers(0, 40) | st.integers(0, len(payload) - 1)) % len(payload)
        payload[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 2, 30]))
    mutated = bytes(payload[: max(0, len(payload) - cut)]) + data.draw(st.sampled_from([b"", b"", b"\0\0"]))
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for available in EXECUTIONS:
            patch.setattr(native, "AVAILABLE", available)
            results.append(outcome(mutated, shape, dtype))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 2), (1, 6), (2, 0), (2, 17), (3, 4), (5, 2), (8, 1), (11, 255)],
)
def test_a_head_that_cannot_be(offset, value):
    tensor = kv_like(KvDtype.BFLOAT16)
    payload = bytearray(encode_exact([tensor], KvDtype.BFLOAT16)[0])
    payload[offset] = value
    with pytest.raises(InvalidData):
        decoded(bytes(payload), tensor.shape, KvDtype.BFLOAT16)


def test_truncation_is_refused_at_every_length():
    tensor = kv_like(KvDtype.BFLOAT16, (1, 20, 6))
    payload = encode_exact([tensor], KvDtype.BFLOAT16)[0]
    for length in range(len(payload)):
        with pytest.raises(InvalidData):
            decoded(payload[:length], tensor.shape, KvDtype.BFLOAT16)


class Bits:
    """Bits of some bytes, lowest first."""

    def __init__(self, data: bytes) -> None:
        self.number, self.at = int.from_bytes(data, "little"), 0

    def take(self, count: int) -> int:
        value = self.number >> self.at & (1 << count) - 1
        self.at += count
        return value

    def next_byte(self) -> int:
        self.at = -(-self.at // 8) * 8
        return self.at // 8


def read_by_the_document(data: bytes, heads: int, tokens: int, head_dim: int) -> list[int]:
    """bfloat16 bit patterns ``[kv_heads, tokens, head_dim]`` of a coded segment, read as docs/FORMAT.md says."""
    lanes, tables, span = 1 << data[1], data[2], 1 << data[3]
    base, escapes = int.from_bytes(data[4:6], "little"), int.from_bytes(data[8:12], "little")
    bits = Bits(data[12:])
    ranges = [(bits.take(8), bits.take(8) + 1) for _ in range(tables)]
    labels = [bits.take((tables - 1).bit_length()) for _ in range(heads * head_dim)]
    bits.next_byte()
    weights = []
    for first, count in ranges:
        codes = {group: bits.take(6) for group in range(first, first + count)}
        weight = {group: (4 + (c - 1) % 4) << (c - 1) // 4 for group, c in codes.items() if c}
        weights.append({2 * (group // 2 * span + i) + group % 2: w for group, w in weight.items() for i in range(span)})
    at = 12 + bits.next_byte()
    frequencies = []
    for weight in weights:
        total, share = sum(weight.values()), {}
        for symbol, own in weight.items():
            share[symbol] = 1 + own * (4096 - len(weight)) // total
        top = min(share, key=lambda symbol: (-share[symbol], symbol))
        share[top] += 4096 - sum(share.values())
        if share[top] == 4096:
            share[top], share[top ^ 1] = 4095, 1
        frequencies.append(share)
    values = heads * tokens * head_dim
    blocks = -(-values // 64)
    rests = []
    for block in range(blocks):
        packed = data[at + 48 * block : at + 48 * block + 48]
        rests += [
            packed[i % 32] >> 4 * (i // 32) & 15 | (packed[32 + i % 16] >> 2 * (i // 16) & 3) << 4 for i in range(64)
        ]
    at += 48 * blocks
    escaped = [int.from_bytes(data[at + 2 * i : at + 2 * i + 2], "little") for i in range(escapes)]
    at += 2 * escapes
    states = [int.from_bytes(data[at + 4 * lane : at + 4 * lane + 4], "little") for lane in range(lanes)]
    at += 4 * lanes
    found, position = [0] * values, 0
    for table in range(tables):
        for channel in (c for c in range(heads * head_dim) if labels[c] == table):
            for token in range(tokens):
                lane = position % lanes
                slot, low = states[lane] % 4096, 0
                for symbol in sorted(frequencies[table]):
                    if slot < low + frequencies[table][symbol]:
                        break
                    low += frequencies[table][symbol]
                states[lane] = frequencies[table][symbol] * (states[lane] // 4096) + slot - low
                if states[lane] < 1 << 16:
                    states[lane] = states[lane] << 16 | int.from_bytes(data[at : at + 2], "little")
                    at += 2
                position += 1
                index, sign = symbol // 2, symbol % 2
                magnitude = 0 if index == 1 else base + index if index else escaped.pop(0)
                place = (channel // head_dim * tokens + token) * head_dim + channel % head_dim
                found[place] = sign << 15 | magnitude << 6 | rests[place]
    assert at == len(data)
    assert states == [1 << 16] * lanes
    return found


def test_a_reader_written_from_the_document():
    tensor = kv_like(KvDtype.BFLOAT16, (2, 90, 24))
    tensor[0, 5:9, 3] = math.nan
    tensor[1, 7, :] = 0
    payload = encode_exact([tensor], KvDtype.BFLOAT16)[0]
    assert payload[2] > 1
    assert read_by_the_document(payload, *tensor.shape) == tensor.view(np.uint16).reshape(-1).tolist()
