"""What of a value is coded and what is stored: nothing is lost, and the compiled loops do as the NumPy ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom.codec import KvDtype
from kvloom.codec.entropy import native
from kvloom.codec.planes import BASE_MAX, FORMS, MAGNITUDE_MAX, JoinJob, join, split

shapes = st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40))
dtypes = st.sampled_from(list(KvDtype))


@st.composite
def tensors(draw):
    """Values of every kind: near each other, near zero, and any bits at all; in memory of any order."""
    dtype, shape = draw(dtypes), draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    word = FORMS[dtype].word
    values = rng.normal(size=shape).astype(dtype.numpy)
    odd = rng.random(shape) < draw(st.sampled_from([0.0, 0.05, 1.0]))
    bits = values.view(word).copy()
    bits[odd] = rng.integers(0, 2 ** (8 * word.itemsize), shape, dtype=np.uint64).astype(word)[odd]
    axes = draw(st.permutations([0, 1, 2]))
    shuffled = np.ascontiguousarray(bits.transpose(axes)).transpose(np.argsort(axes))
    return dtype, shuffled.view(dtype.numpy) if axes[2] == 2 else shuffled.view(word)


@pytest.mark.skipif(not native.AVAILABLE, reason="installed without a C++ compiler: NumPy is all there is")
@given(tensors())
def test_compiled_split_is_the_reference(drawn):
    dtype, tensor = drawn
    (found,) = split([tensor], FORMS[dtype])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        (expected,) = split([tensor], FORMS[dtype])
    assert found.base == expected.base
    assert np.array_equal(found.symbols, expected.symbols)
    assert np.array_equal(found.counts, expected.counts)
    assert found.rest.tobytes() == expected.rest.tobytes()
    assert len(found.rest) == FORMS[dtype].rest_bytes(tensor.size)


@pytest.mark.parametrize("available", sorted({native.AVAILABLE, False}))
@given(drawn=tensors(), seed=st.integers(0, 99))
def test_join_undoes_split(available, drawn, seed):
    dtype, tensor = drawn
    form = FORMS[dtype]
    (planes,) = split([tensor], form)
    order = np.random.default_rng(seed).permutation(len(planes.symbols))
    places = np.argsort(order).astype(np.uint32)
    heads, tokens, head_dim = tensor.shape
    rooms = [
        np.empty(tensor.shape, form.word),
        np.full((heads, tokens + 9, head_dim), 7, form.word)[:, 4 : 4 + tokens],
        np.empty((head_dim, tokens, heads), form.word).transpose(2, 1, 0),
        np.empty((heads, tokens, head_dim), form.word)[::-1, ::-1, ::-1],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", available)
        join([JoinJob(planes.symbols[order].copy(), places, planes.rest, planes.base, room) for room in rooms], form)
    bits = np.ascontiguousarray(tensor).view(form.word)
    escaped = np.zeros(tensor.shape, dtype=bool)
    if form.windowed:
        by_channel = planes.symbols < 2
        escaped = by_channel.reshape(heads, head_dim, tokens).transpose(0, 2, 1)
    mask = form.word.type((1 << form.rest_bits) - 1 | 1 << form.bits - 1)
    expected = np.where(escaped, bits & mask, bits)
    for room in rooms:
        assert np.array_equal(room, expected)
    assert (rooms[1].base[:, :4] == 7).all()
    assert (rooms[1].base[:, 4 + tokens :] == 7).all()


@pytest.mark.parametrize("dtype", [KvDtype.BFLOAT16, KvDtype.FLOAT32])
def test_window(dtype):
    """The largest finite number sets the window; zeros are in it, infinities and what is 63 octaves smaller are not."""
    values = np.array([3.0, -3.0, 0.0, -0.0, 3 * 2.0**-62, 2.0**-64, np.inf, np.nan, 1e-40], np.float64)
    tensor = values.astype(dtype.numpy).reshape(1, -1, 1)
    (planes,) = split([tensor], FORMS[dtype])
    index, sign = planes.symbols[0] >> 1, planes.symbols[0] & 1
    assert list(index[:6]) == [127, 127, 1, 1, 3, 0]
    assert list(index[6:]) == [0, 0, 1]
    assert list(sign[:4]) == [0, 1, 0, 1]
    assert planes.counts[0, :2].sum() == 3
    assert 0 < planes.base <= BASE_MAX
    assert planes.base + 127 == 257 <= MAGNITUDE_MAX


def test_wide_heads():
    """Heads wider than a tile holds whole."""
    tensor = np.random.default_rng(1).normal(size=(1, 37, 700)).astype(KvDtype.BFLOAT16.numpy)
    form = FORMS[KvDtype.BFLOAT16]
    (planes,) = split([tensor], form)
    out = np.empty_like(tensor)
    join([JoinJob(planes.symbols, np.arange(700, dtype=np.uint32), planes.rest, planes.base, out)], form)
    assert out.tobytes() == tensor.tobytes()
