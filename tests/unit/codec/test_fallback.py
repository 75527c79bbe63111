"""A chunk that is nothing like the calibration text never costs more than it would with no calibration at all."""

import numpy as np
import pytest

from kvloom import codec
from kvloom.codec import STANDARD
from kvloom.codec.header import generic_digest
from kvloom.codec.layout import Kind
from kvloom.codec.learning import SPREAD_SHARE

LAYERS, HEADS, DIM, TOKENS = 4, 2, 16, 256
LAYOUT = codec.Layout.uniform(layers=LAYERS, kv_heads=HEADS, head_dim=DIM)
CHANNELS = 2 * LAYERS * HEADS * DIM


def mixed(seed: int, rank: int, tokens: int, *, scale: float = 1.0):
    """KV whose channels are mixtures of ``rank`` sources, mixed as ``seed`` says, plus a little of all else."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank, CHANNELS))
    rng = np.random.default_rng(seed + 1000)
    channels = rng.laplace(size=(tokens, rank)) @ mixing + 0.05 * rng.normal(size=(tokens, CHANNELS))
    shaped = (scale * channels).astype(np.float32).reshape(tokens, LAYERS, 2, HEADS, DIM).transpose(2, 1, 3, 0, 4)
    return np.ascontiguousarray(shaped[0]), np.ascontiguousarray(shaped[1])


@pytest.fixture(scope="module")
def profile():
    return codec.calibrate([codec.KvSample(*mixed(1, 6, 2000), 10)], LAYOUT)


def coded_with(blob: bytes) -> bytes:
    return codec.info(blob).header.profile_digest


def test_text_like_the_calibration_text_keeps_its_profile(profile):
    blob = codec.encode(*mixed(1, 6, TOKENS), layout=LAYOUT, profile=profile, first_position=64)
    assert coded_with(blob) == profile.digest


def test_text_unlike_it_is_coded_generically_where_that_is_smaller_and_decodes_with_either(profile):
    # A few loud channels: to take them apart by a transform that was made for others only spreads them out.
    loud = np.where(np.arange(DIM) < 3, 30.0, 0.03).astype(np.float32)
    keys, values = (item * loud for item in mixed(2, CHANNELS, TOKENS))
    blob = codec.encode(keys, values, layout=LAYOUT, profile=profile, first_position=64)
    assert coded_with(blob) == generic_digest(LAYOUT)
    for given in (profile, None, codec.generic_profile(LAYOUT)):
        found_keys, found_values = codec.decode(blob, profile=given, level=STANDARD)
        for found, wanted in ((found_keys, keys), (found_values, values)):
            assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.25 * wanted.std()


@pytest.mark.parametrize("rank", [3, 12, CHANNELS])
def test_it_never_costs_much_more_than_generic_at_equal_error(profile, rank):
    keys, values = mixed(7, rank, TOKENS)
    found = []
    for given in (profile, codec.generic_profile(LAYOUT)):
        blob = codec.encode(keys, values, layout=LAYOUT, profile=given, first_position=64, levels=[STANDARD])
        restored = codec.decode(blob, profile=given)
        # Without gradients the metric weighs a tensor by the step it is given: finer keys count for more.
        weights = [1 / SPREAD_SHARE[kind] ** 2 for kind in Kind]
        error = sum(w * np.mean((a - b) ** 2) for w, a, b in zip(weights, restored, (keys, values), strict=True))
        found.append((8 * len(blob) / (keys.size + values.size), error))
    (bits, error), (generic_bits, generic_error) = found
    equal = generic_bits + 0.5 * np.log2(generic_error / error)
    assert bits <= 1.02 * equal + 0.02
