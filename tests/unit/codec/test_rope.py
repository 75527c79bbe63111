"""Rotation of keys against its definition in complex numbers, and what storage and blending rely on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.codec.layout import Rope
from kvloom.codec.rope import cos_sin, rotate, rotate_into

HEADS, TOKENS, HEAD_DIM = 2, 5, 10
FREQUENCIES = (1.0, 0.25, 0.003, 1e-6)
ROPES = [
    Rope(FREQUENCIES), Rope(FREQUENCIES, interleaved=True), Rope((0.5,) * (HEAD_DIM // 2)), Rope((1.0,)),
    Rope(FREQUENCIES, first_dim=2), Rope(FREQUENCIES, interleaved=True, first_dim=1),
]  # fmt: skip
IDS = ["halves", "interleaved", "whole head", "one pair", "last halves", "interleaved in the middle"]
positions_of = st.lists(st.integers(0, 10**6), min_size=TOKENS, max_size=TOKENS).map(lambda p: np.array(p, np.int64))


def keys_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((HEADS, TOKENS, HEAD_DIM)).astype(np.float32)


def by_definition(keys: np.ndarray, rope: Rope, positions: np.ndarray) -> np.ndarray:
    """Each pair is a complex number, multiplied by exp(i · position · frequency), all in float64."""
    out = keys.astype(np.float64)
    for pair, frequency in enumerate(rope.inverse_frequencies):
        a, b = (2 * pair, 2 * pair + 1) if rope.interleaved else (pair, pair + len(rope.inverse_frequencies))
        a, b = a + rope.first_dim, b + rope.first_dim
        turned = (out[..., a] + 1j * out[..., b]) * np.exp(1j * positions * frequency)
        out[..., a], out[..., b] = turned.real.copy(), turned.imag.copy()
    return out


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
@given(seed=st.integers(0, 2**32 - 1), positions=positions_of)
def test_rotation_is_its_definition(rope: Rope, seed: int, positions: np.ndarray) -> None:
    keys = keys_of(seed)
    assert np.allclose(rotate(keys, rope, positions), by_definition(keys, rope, positions), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
@given(seed=st.integers(0, 2**32 - 1), positions=positions_of)
def test_negative_positions_undo_a_rotation(rope: Rope, seed: int, positions: np.ndarray) -> None:
    keys = keys_of(seed)
    back = rotate(rotate(keys, rope, positions), rope, -positions)
    assert np.max(np.abs(back - keys)) <= 1e-6 * np.max(np.abs(keys))


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
def test_a_difference_of_positions_moves_keys(rope: Rope) -> None:
    keys, old, new = keys_of(1), np.arange(TOKENS), np.arange(TOKENS) + 8192
    moved = rotate(rotate(keys, rope, old), rope, new - old)
    assert np.allclose(moved, rotate(keys, rope, new), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
def test_attention_sees_only_distances(rope: Rope) -> None:
    queries, keys = keys_of(2), keys_of(3)
    at = np.arange(TOKENS)

    def scores(offset: int) -> np.ndarray:
        return np.einsum("htd,hsd->hts", rotate(queries, rope, at + offset), rotate(keys, rope, at + offset))

    assert np.allclose(scores(0), scores(4096), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rope", ROPES, ids=IDS)
def test_dimensions_outside_the_rotary_ones_pass_unchanged_and_the_input_is_kept(rope: Rope) -> None:
    keys = keys_of(4)
    before = keys.copy()
    changed = (rotate(keys, rope, np.full(TOKENS, 77)) != keys).any(axis=(0, 1))
    turned = np.zeros(HEAD_DIM, dtype=bool)
    turned[rope.first_dim : rope.first_dim + 2 * len(rope.inverse_frequencies)] = True
    assert not changed[~turned].any()
    assert changed[turned][:2].any()
    assert (keys == before).all()


def test_position_zero_changes_no_bit() -> None:
    keys = keys_of(5)
    assert (rotate(keys, ROPES[0], np.zeros(TOKENS, np.int64)) == keys).all()


def test_angles_at_the_last_position_are_those_of_float64() -> None:
    last = np.array([limits.POSITION_MAX], np.int64)
    cos, sin = cos_sin(Rope((1.0, 0.7)), last)
    angles = float(limits.POSITION_MAX) * np.array([1.0, 0.7])
    assert (cos[0] == np.cos(angles).astype(np.float32)).all()
    assert (sin[0] == np.sin(angles).astype(np.float32)).all()


def test_a_caller_may_give_the_place_for_the_result() -> None:
    keys, rope, positions = keys_of(6), ROPES[1], np.arange(TOKENS) * 3
    out = np.full((HEADS, TOKENS, HEAD_DIM), np.nan, dtype=np.float64)
    rotate_into(out, keys, rope, *cos_sin(rope, positions))
    assert (out.astype(np.float32) == rotate(keys, rope, positions)).all()
