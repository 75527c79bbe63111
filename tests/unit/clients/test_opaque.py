"""Rows of any bytes come back bit for bit, whatever numbers these happen to be and whatever pieces they stand in."""

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.opaque import OpaqueRows, opaque_dtype
from kvloom.codec.container import Container
from kvloom.codec.layout import KvDtype
from kvloom.errors import ConfigError
from kvloom.kvstore.key import ContentKey

KEY = ContentKey(blake3(b"a row").digest())


@given(
    row_bytes=st.integers(1, 9000),
    dtype=st.sampled_from(list(KvDtype)),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_row_of_any_bytes_in_any_pieces_comes_back(
    row_bytes: int, dtype: KvDtype, cuts: list[float], seed: int
) -> None:
    rows = OpaqueRows.of(row_bytes, dtype)
    places = sorted(int(cut * row_bytes) for cut in cuts)
    row = np.random.default_rng(seed).integers(0, 256, rows.row_bytes, dtype=np.uint8)
    kept = row.copy()
    container = Container.parse(rows.encode(np.split(row, places), KEY), content_key=KEY)
    assert np.array_equal(row, kept)
    back = np.zeros_like(row)
    rows.decode_into(container, np.split(back, places))
    assert np.array_equal(back, kept)


@given(dtype=st.sampled_from(list(KvDtype)), vectors=st.sampled_from([1, 7, 4096, 16384]))
def test_halves_are_the_same_row_as_the_whole(dtype: KvDtype, vectors: int) -> None:
    row_bytes = 2 * vectors * 128 * dtype.numpy.itemsize
    rows = OpaqueRows.of(row_bytes, dtype)
    row = np.random.default_rng(vectors).integers(0, 256, row_bytes, dtype=np.uint8)
    blob = rows.encode(np.split(row, 2), KEY)
    assert blob == rows.encode([row], KEY)
    back = np.zeros_like(row)
    rows.decode_into(Container.parse(blob, content_key=KEY), np.split(back, 2))
    assert np.array_equal(back, row)


@pytest.mark.parametrize("row_bytes", [4096, 737_280, 3 * 4096 * 4096, 4096 * 5003])
def test_rows_of_the_sizes_that_engines_have_get_a_shape(row_bytes: int) -> None:
    rows = OpaqueRows.of(row_bytes, KvDtype.BFLOAT16)
    assert row_bytes <= rows.tokens * rows.layout.bytes_per_token < 1.01 * row_bytes + 1024


@pytest.mark.parametrize("row_bytes", [0, -1, 4 * 1_000_003 * 1_000_033])
def test_a_size_that_no_layout_has_is_refused(row_bytes: int) -> None:
    with pytest.raises(ConfigError, match=str(row_bytes)):
        OpaqueRows.of(row_bytes, KvDtype.FLOAT16)


def test_an_engines_dtype_is_ours_or_has_its_bits_kept() -> None:
    assert opaque_dtype("torch.bfloat16") is KvDtype.BFLOAT16
    assert opaque_dtype("torch.uint8").numpy.itemsize == 1
