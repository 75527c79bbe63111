"""``docs/FORMAT.md`` is enough to write a decoder.

``tests/oracles`` has one that was written from it: what it makes of a chunk is what the codec makes of it.
"""

import numpy as np
import pytest
from exact_decoder import decode_exact
from format_decoder import decode, parse_container

from kvloom import codec

ROPE = codec.Rope((1.0, 0.1))
LAYOUT = codec.Layout(
    codec.KvDtype.FLOAT32,
    (
        codec.LayerLayout(2, 4, ROPE),
        codec.LayerLayout(1, 6, codec.Rope((0.5, 0.01), True, 2), value_head_dim=3),
        codec.LayerLayout(1, 8, codec.Rope((0.0,)), value_head_dim=4, value_rope=ROPE),
    ),
)


def draw(tokens: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    mixes = np.random.default_rng(5)
    kinds: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for layer in LAYOUT.layers:
        for held, dim in zip(kinds, (layer.head_dim, layer.value_head_dim), strict=True):
            mix = mixes.normal(size=(dim, dim)) * np.exp(-np.arange(dim) / 2)
            numbers = rng.laplace(size=(layer.kv_heads, tokens, dim)) @ mix.T + mixes.normal(size=dim)
            numbers[:, tokens // 2] *= 30
            held.append(numbers.astype(np.float32))
    return kinds


@pytest.mark.parametrize("level", codec.LOSSY_LEVELS, ids=str)
@pytest.mark.parametrize("first_position", [0, 40])
@pytest.mark.parametrize("kind", ["calibrated", "gains", "generic"])
def test_a_decoder_written_from_the_document_gets_the_same_tensors(kind, first_position, level):
    chunk = draw(30, 2)
    sample = codec.KvSample(*draw(200, 1), 0, (codec.KvGradient(*draw(200, 3)),) if kind == "gains" else ())
    profile = (
        codec.generic_profile(LAYOUT)
        if kind == "generic"
        else codec.calibrate([sample], LAYOUT, block_channels=40, step_scale=0.2)
    )
    blob = codec.encode(*chunk, layout=LAYOUT, profile=profile, first_position=first_position)
    assert codec.info(blob).header.profile_digest == profile.digest
    used = None if kind == "generic" else profile.data
    ours = decode(blob, level.code, used)
    theirs = codec.decode(blob, profile=profile, level=level)
    for layer, tensors in enumerate(ours):
        for mine, held in zip(tensors, theirs, strict=True):
            scale = np.abs(held[layer]).max()
            assert np.abs(mine - held[layer]).max() < 2e-5 * scale


@pytest.mark.parametrize("packed", [True, False, None], ids=["packed", "raw", "default"])
@pytest.mark.parametrize("dtype", codec.KvDtype)
def test_it_gets_the_same_bits_of_exact(dtype, packed):
    layout = codec.Layout(dtype, (codec.LayerLayout(2, 12), codec.LayerLayout(1, 12, value_head_dim=5)))
    rng = np.random.default_rng(3)
    word = np.dtype(f"u{dtype.numpy.itemsize}")
    kinds = [
        [
            (rng.normal(size=(layer.kv_heads, 90, dim)) * np.exp(rng.normal(size=dim))).astype(dtype.numpy)
            for dim in dims
        ]
        for layer in layout.layers
        for dims in [(layer.head_dim, layer.value_head_dim)]
    ]
    # Zeros of both signs, infinity, NaN with a payload, and the smallest number there is.
    top = 1 << 8 * word.itemsize - 1
    odd = [0, top, top - 1, 1, int(np.array(np.inf).astype(dtype.numpy).view(word))]
    for layer in kinds:
        for tensor in layer:
            tensor.view(word).reshape(-1)[7 : 7 + len(odd)] = odd
    keys, values = ([layer[kind] for layer in kinds] for kind in (0, 1))
    chosen = {} if packed is None else {"exact_packed": packed}
    blob = codec.encode(keys, values, layout=layout, **chosen)
    coded = packed if packed is not None else dtype is not codec.KvDtype.FLOAT32
    assert all(payload[0] == coded for payload in parse_container(blob)["segments"].values())
    for mine, held in zip(decode_exact(blob, dtype.value), kinds, strict=True):
        for words, tensor in zip(mine, held, strict=True):
            assert np.array_equal(words, tensor.view(word))
