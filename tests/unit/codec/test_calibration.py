"""Calibration finds what was planted: layers alike, tokens that matter, directions that matter."""

import re

import numpy as np
import pytest

from kvloom import codec
from kvloom.codec import KvGradient, KvSample, Layout, calibrate
from kvloom.codec.calibration import BLOCK_CHANNELS, BLOCK_LAYERS
from kvloom.errors import InvalidRequest, InvalidTensor

LAYOUT = Layout.uniform(layers=2, kv_heads=1, head_dim=8)
TOKENS = 300
LOUD = 0
"""The channel that is large on tokens that matter."""


def draw(seed: int, tokens: int = TOKENS, *, loud=None):
    rng = np.random.default_rng(seed)
    both = rng.normal(size=(2, 2, 1, tokens, 8)).astype(np.float32)
    if loud is not None:
        both[1, :, 0, loud, LOUD] += 12
    return both[0], both[1]


def sample(seed: int, weight_of_token=None, weight_of_value_channel=None, loud=None) -> KvSample:
    rng = np.random.default_rng(seed + 1000)
    keys, values = draw(seed, loud=loud)
    gradients = []
    for _ in range(3):
        both = 0.01 * rng.normal(size=(2, 2, 1, TOKENS, 8)).astype(np.float32)
        if weight_of_token is not None:
            both *= np.asarray(weight_of_token, np.float32)[None, None, None, :, None]
        if weight_of_value_channel is not None:
            both[1] *= np.asarray(weight_of_value_channel, np.float32)
        gradients.append(KvGradient(both[0], both[1], following=50))
    return KvSample(keys, values, 0, tuple(gradients))


def error_of(profile, keys, values, level="standard"):
    blob = codec.encode(keys, values, layout=profile.layout, profile=profile, first_position=9)
    assert codec.info(blob).header.profile_digest == profile.digest
    return codec.decode(blob, profile=profile, level=level)[1] - values


def test_tokens_with_large_gradients_get_larger_gains():
    samples = []
    for seed in range(30):
        loud = np.random.default_rng(seed).choice(np.arange(5, TOKENS), 20, replace=False)
        weight = np.ones(TOKENS)
        weight[loud] = 30
        samples.append(sample(seed, weight_of_token=weight, loud=loud))
    profile = calibrate(samples, LAYOUT, kl_target=0.05)
    loud = np.array([7, 50, 120])
    error = error_of(profile, *draw(999, loud=loud))
    others = np.setdiff1d(np.arange(TOKENS), loud)
    assert np.sqrt((error[:, :, loud] ** 2).mean()) < 0.4 * np.sqrt((error[:, :, others] ** 2).mean())


def test_directions_with_large_gradients_get_smaller_errors():
    weight = np.array([20, 20, 1, 1, 1, 1, 1, 1.0])
    profile = calibrate([sample(seed, weight_of_value_channel=weight) for seed in range(10)], LAYOUT, kl_target=0.01)
    error = np.sqrt((error_of(profile, *draw(999)) ** 2).mean(axis=(0, 1, 2)))
    assert error[:2].max() < 0.4 * error[2:].min()


def test_a_stricter_target_costs_more_bits_and_errs_less():
    samples = [sample(seed) for seed in range(6)]
    bits, errors = [], []
    for target in (0.1, 0.01, 0.001, 0.0001):
        profile = calibrate(samples, LAYOUT, kl_target=target)
        chunk = draw(999)
        errors.append(float((error_of(profile, *chunk) ** 2).mean()))
        blob = codec.encode(*chunk, layout=LAYOUT, profile=profile, first_position=9)
        bits.append(codec.info(blob).bits_per_value["standard"])
    assert errors == sorted(errors, reverse=True)
    assert bits == sorted(bits)
    assert errors[-1] < 0.05 * errors[0]


def test_without_gradients_errors_are_a_share_of_each_tensors_spread():
    keys, values = draw(1, 800)
    keys = 100 * keys
    profile = calibrate([KvSample(keys, values)], LAYOUT)
    assert not any(block.gain_weights.size for block in profile.blocks)
    chunk = draw(2)
    blob = codec.encode(100 * chunk[0], chunk[1], layout=LAYOUT, profile=profile)
    decoded = codec.decode(blob, profile=profile, level="standard")
    ratio = np.std(decoded[0] - 100 * chunk[0]) / 100 / np.std(decoded[1] - chunk[1])
    assert 0.6 < ratio < 1.0  # keys' step is 7/9 of values', over their spread


@pytest.mark.parametrize("refinements", range(4))
def test_fewer_refinements_are_fewer_levels_of_which_the_last_is_as_fine(refinements):
    samples = [KvSample(*draw(1, 600))]
    profile = calibrate(samples, LAYOUT, refinements=refinements)
    chunk = draw(2)
    blob = codec.encode(*chunk, layout=LAYOUT, profile=profile)
    assert codec.info(blob).header.levels == codec.LOSSY_LEVELS[: refinements + 1]
    full = calibrate(samples, LAYOUT)
    finest = codec.decode(blob, profile=profile)[1]
    expected = codec.decode(codec.encode(*chunk, layout=LAYOUT, profile=full), profile=full)[1]
    assert np.array_equal(finest, expected)


@pytest.mark.parametrize("refinements", [-1, 4])
def test_more_refinements_than_levels_are_refused(refinements):
    with pytest.raises(InvalidRequest, match="must be 0 to 3"):
        calibrate([KvSample(*draw(1))], LAYOUT, refinements=refinements)


def test_text_of_first_tokens_alone_is_refused():
    with pytest.raises(InvalidTensor, match="no token beyond the first"):
        calibrate([KvSample(*draw(1, 4))], LAYOUT)
    calibrate([KvSample(*draw(1, 4), first_position=4)], LAYOUT)


def test_the_same_text_makes_the_same_profile():
    samples = [sample(seed) for seed in range(3)]
    assert calibrate(samples, LAYOUT).digest == calibrate(iter(samples), LAYOUT).digest


def test_a_profile_says_what_decoding_costs():
    """A light transform and a full one of the same KV: the planner weighs bits against multiply-adds."""
    samples = [KvSample(*draw(1, 600))]
    width = sum(layer.key_width + layer.value_width for layer in LAYOUT.layers)
    full = calibrate(samples, LAYOUT, block_channels=width)
    light = calibrate(samples, LAYOUT, block_channels=LAYOUT.layers[0].head_dim)
    assert full.multiply_adds_per_value == width
    assert light.multiply_adds_per_value == LAYOUT.layers[0].head_dim
    assert codec.generic_profile(LAYOUT).multiply_adds_per_value == 0


@pytest.mark.parametrize("magnitude", [1.1e15, 1e20, 3e38])
def test_kv_too_large_to_be_squared_is_refused_by_its_magnitude(magnitude):
    keys, values = draw(1)
    values[0, 0, 40, 3] = -magnitude
    with pytest.raises(InvalidTensor, match=re.escape(f"magnitude {magnitude:.3g}, the limit is 1e+15")):
        calibrate([KvSample(keys, values)], LAYOUT)


def test_a_block_has_at_most_six_layers_and_so_many_channels():
    assert (BLOCK_LAYERS, BLOCK_CHANNELS) == (6, 3072)
    for head_dim, kv_heads, layers in ((4, 1, 6), (8, 1, 6), (8, 2, 3), (16, 4, 1)):
        layout = Layout.uniform(layers=14, kv_heads=kv_heads, head_dim=head_dim)
        kv = np.random.default_rng(1).normal(size=(2, 14, kv_heads, 30, head_dim)).astype(np.float32)
        profile = calibrate([KvSample(*kv)], layout, refinements=0, block_channels=96)
        assert profile.block_layers == layers
