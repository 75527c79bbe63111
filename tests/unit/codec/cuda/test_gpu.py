"""The lossy levels through the kernels, from containers to pages and back, against the codec on NumPy."""

import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kvloom import codec
from kvloom.codec import LOSSY_LEVELS, Kind, KvDtype, Layout
from kvloom.codec.gpu import PagedKv, PageOrder, decode_into_pages, encode_from_pages
from kvloom.errors import (
    InvalidData,
    InvalidRequest,
    InvalidTensor,
    LayoutMismatch,
    LevelNotStored,
    MissingDependency,
    NonFiniteTensor,
    ProfileMismatch,
)

BLOCK_SIZE, BLOCKS = 16, 40
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def make_pages(layout: Layout, dtype: str, order: PageOrder = PageOrder.NHD) -> PagedKv:
    """Empty pages, as views into a larger tensor, which is what engines hand out."""
    pages: list[list[Any]] = [[], []]
    for kind in Kind:
        for spec in layout.layers:
            heads, dim = spec.kv_heads, spec.head_dim_of(kind)
            inner = (BLOCK_SIZE, heads, dim) if order is PageOrder.NHD else (heads, BLOCK_SIZE, dim)
            whole = np.full((BLOCKS, 2, *inner), 7.0, DTYPES[dtype])
            pages[kind].append(whole[:, 1])
    return PagedKv(pages[0], pages[1], order)


def slots_of(table: np.ndarray, start: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    slots = start + np.arange(tokens)
    return table[slots // BLOCK_SIZE], slots % BLOCK_SIZE


def read(pages: PagedKv, table: np.ndarray, start: int, tokens: int) -> list[list[np.ndarray]]:
    """Per kind and layer ``[kv_heads, tokens, head_dim]``."""
    block, slot = slots_of(table, start, tokens)
    if pages.order is PageOrder.NHD:
        return [[array[block, slot].transpose(1, 0, 2) for array in arrays] for arrays in (pages.keys, pages.values)]
    return [[array[block, :, slot].transpose(1, 0, 2) for array in arrays] for arrays in (pages.keys, pages.values)]


def write(pages: PagedKv, table: np.ndarray, start: int, kv: Any) -> None:
    block, slot = slots_of(table, start, kv.keys[0].shape[1])
    for arrays, given in ((pages.keys, kv.keys), (pages.values, kv.values)):
        for array, heads in zip(arrays, given, strict=True):
            if pages.order is PageOrder.NHD:
                array[block, slot] = heads.transpose(1, 0, 2)
            else:
                array[block, :, slot] = heads.transpose(1, 0, 2)


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(5).permutation(BLOCKS).astype(np.int32)


@pytest.mark.parametrize("order", list(PageOrder))
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("level", [str(level) for level in LOSSY_LEVELS])
def test_chunks_decode_into_pages_as_numpy_decodes_them(
    device, layout, profile, reference, draw_kv, table, level, dtype, order
):
    lengths, starts, firsts = [70, 70, 1, 131], [0, 75, 150, 200], [0, 70, 140, 141]
    blobs = [
        reference.encode(kv, profile, first_position=first)
        for kv, first in ((draw_kv(n, seed), f) for seed, (n, f) in enumerate(zip(lengths, firsts, strict=True)))
    ]
    pages = make_pages(layout, dtype, order)
    moved = [0, 75, 150, 9]
    decode_into_pages(blobs, profile, pages, table, level=level, slots=starts, positions=moved, device=device)
    for blob, tokens, start, position in zip(blobs, lengths, starts, moved, strict=True):
        container = codec.Container.parse(blob)
        expected = reference.decode(container, profile, level=level, first_position=position)
        for found, wanted in zip(read(pages, table, start, tokens), expected, strict=True):
            for got, array in zip(found, wanted, strict=True):
                largest = np.float32(ml_dtypes.finfo(got.dtype).max)
                assert got.tobytes() == np.clip(array, -largest, largest).astype(got.dtype).tobytes()
    block, slot = slots_of(table, 70, 5)
    between = pages.keys[0][block, slot] if order is PageOrder.NHD else pages.keys[0][block, :, slot]
    assert (between.astype(np.float32) == 7).all()


def test_a_generic_profile_needs_no_profile_to_be_given(device, layout, reference, draw_kv, table):
    kv = draw_kv(100, 1)
    blob = codec.encode(kv.keys, kv.values, layout=layout, profile=codec.generic_profile(layout))
    pages = make_pages(layout, "float32")
    decode_into_pages([blob], None, pages, table, device=device)
    wanted_of = reference.decode(codec.Container.parse(blob), codec.generic_profile(layout))
    for found, wanted in zip(read(pages, table, 0, 100), wanted_of, strict=True):
        for got, array in zip(found, wanted, strict=True):
            assert np.array_equal(got, array)


@pytest.mark.parametrize("order", list(PageOrder))
@pytest.mark.parametrize("loud", [1.0, 3000.0])
def test_a_chunk_encoded_from_pages_has_the_codecs_bytes(
    device, layout, profile, reference, draw_kv, table, order, loud
):
    kv = draw_kv(150, 2, loud=loud)
    pages = make_pages(layout, "float32", order)
    write(pages, table, 3, kv)
    arguments = {"profile": profile, "lengths": [150], "first_slot": 3, "device": device}
    for first in (0, 33):
        blobs = encode_from_pages(pages, table, first_position=first, content_keys=[b"k" * 32], **arguments)
        wanted = reference.encode(kv, profile, first_position=first, content_key=b"k" * 32)
        assert blobs == [wanted]
    draft = encode_from_pages(pages, table, first_position=33, level="economy", **arguments)[0]
    assert [str(level) for level in codec.info(draft).header.levels] == ["draft", "economy"]


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("generic", [False, True])
def test_chunks_of_any_dtype_encoded_from_pages_decode_near_to_what_was_there(
    device, layout, profile, reference, draw_kv, table, dtype, generic
):
    kv = draw_kv(300, 4, loud=8.0)
    pages = make_pages(layout, dtype)
    write(pages, table, 0, kv)
    chosen = codec.generic_profile(layout) if generic else profile
    lengths = [100, 129, 71]
    blobs = encode_from_pages(pages, table, profile=chosen, lengths=lengths, first_position=5, device=device)
    at = 0
    for blob, tokens in zip(blobs, lengths, strict=True):
        found = codec.decode(blob, profile=chosen)
        held = read(pages, table, at, tokens)
        wide = type(kv)(*([array.astype(np.float32) for array in side] for side in held))
        alike = codec.decode(reference.encode(wide, chosen, first_position=5 + at), profile=chosen)
        for got, wanted, original in zip(
            (x for side in found for x in side), (x for side in alike for x in side), held[0] + held[1], strict=True
        ):
            source = original.astype(np.float64)
            error, usual = (np.sqrt(np.mean((x - source) ** 2)) for x in (got, wanted))
            assert error == pytest.approx(usual, rel=0.02)
        at += tokens


def test_damage_behind_the_checksum_is_refused_and_nothing_else(device, layout, profile, reference, draw_kv, table):
    """Whatever byte of a stream is wrong, the kernels refuse what the codec refuses and decode what it decodes."""
    blob = reference.encode(draw_kv(40, 6), profile)
    parsed = codec.Container.parse(blob)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = bytearray(blob)
        damaged[rng.integers(parsed.header.header_bytes, len(blob))] ^= 1 << int(rng.integers(8))
        container = codec.Container(parsed.header, memoryview(damaged))
        pages = make_pages(layout, "float32")
        with np.errstate(all="ignore"):
            try:
                expected = reference.decode(container, profile)
            except InvalidData:
                with pytest.raises(InvalidData):
                    decode_into_pages([container], profile, pages, table, device=device)
                refused += 1
                continue
            decode_into_pages([container], profile, pages, table, device=device)
        found = [x for side in read(pages, table, 0, 40) for x in side]
        assert all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(found, [*expected[0], *expected[1]], strict=True)
        )
    assert refused > 30


def test_what_cannot_be_is_refused_before_any_work(device, layout, profile, reference, draw_kv, table):
    kv = draw_kv(40, 7)
    blob = codec.truncate(reference.encode(kv, profile), "economy")
    pages = make_pages(layout, "float32")
    for error, arguments in (
        (InvalidRequest, {"level": "exact"}),
        (LevelNotStored, {"level": "fine"}),
        (InvalidTensor, {"slots": [0, 1]}),
        (InvalidTensor, {"slots": [-1]}),
        (InvalidTensor, {"slots": [BLOCKS * BLOCK_SIZE - 39]}),
    ):
        with pytest.raises(error):
            decode_into_pages([blob], profile, pages, table, device=device, **arguments)
    with pytest.raises(ProfileMismatch):
        decode_into_pages([blob], None, pages, table, device=device)
    with pytest.raises(InvalidTensor, match="block table names"):
        decode_into_pages([blob], profile, pages, table + 1, device=device)
    swapped = PagedKv(pages.keys, pages.values, PageOrder.HND)
    with pytest.raises(InvalidTensor, match="heads"):
        decode_into_pages([blob], profile, swapped, table, device=device)
    with pytest.raises(InvalidTensor, match="int8"):
        decode_into_pages([blob], profile, PagedKv([a.astype(np.int8) for a in pages.keys], pages.values), table)
    unknown = layout.as_given()
    given = codec.encode(kv.keys, kv.values, layout=unknown, profile=codec.generic_profile(unknown))
    with pytest.raises(LayoutMismatch):
        decode_into_pages([given], None, pages, table, positions=[1], device=device)
    with pytest.raises(LayoutMismatch):
        decode_into_pages([blob, given], profile, pages, table, device=device)
    assert all((array == 7).all() for array in (*pages.keys, *pages.values))


def test_what_is_not_finite_is_not_encoded(device, layout, profile, draw_kv, table):
    kv = draw_kv(40, 8)
    kv.values[2][1, 39, 15] = np.inf
    pages = make_pages(layout, "bfloat16")
    write(pages, table, 0, kv)
    arguments = {"profile": profile, "device": device}
    assert len(encode_from_pages(pages, table, lengths=[39], **arguments)) == 1
    with pytest.raises(NonFiniteTensor):
        encode_from_pages(pages, table, lengths=[40], **arguments)
    with pytest.raises(InvalidRequest):
        encode_from_pages(pages, table, lengths=[39], level="exact", **arguments)
    with pytest.raises(InvalidTensor):
        encode_from_pages(pages, table, lengths=[39], content_keys=[], **arguments)


def test_without_cupy_the_extra_is_named(layout, profile, reference, draw_kv, table, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    blob = reference.encode(draw_kv(10, 9), profile)
    with pytest.raises(MissingDependency, match=r"kvloom\[gpu\]"):
        decode_into_pages([blob], profile, make_pages(layout, "float32"), table)


def test_pages_of_torch_are_described_without_torch(layout):
    """A torch tensor has no ``ctypes`` and strides in elements."""

    class Tensor:
        dtype, shape = "torch.bfloat16", (9, 16, 2, 24)

        def data_ptr(self) -> int:
            return 4096

        def stride(self) -> tuple[int, ...]:
            return (2000, 48, 24, 1)

    pages = PagedKv([Tensor()] * 3, [Tensor()] * 2 + [np.zeros((9, 16, 2, 16), np.float16)])
    found = pages.tensors(layout, np.arange(2, dtype=np.int32), 32)[0, Kind.VALUES]
    assert (found.address, found.element, found.block_stride, found.slot_stride) == (4096, 2, 2000, 48)
    assert KvDtype.BFLOAT16.value in str(Tensor.dtype)
