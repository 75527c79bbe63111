"""Profile files: what was written is read, and nothing else is."""

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard

from kvloom import codec, limits
from kvloom.codec.profile import FINE_CLASSES, Block, Part, Profile
from kvloom.errors import InvalidData

HEAD_BYTES = 12
LAYOUT = codec.Layout.uniform(layers=2, kv_heads=1, head_dim=2)
WIDTH = 8


def small(**changes) -> Profile:
    """A profile of one block of two parts, the first with a basis; ``changes`` are of that part."""
    rng = np.random.default_rng(1)
    numbers = {
        "start": 0,
        "mean": rng.normal(size=3).astype(np.float32),
        "origin_mean": rng.normal(size=3).astype(np.float32),
        "scale": np.array([0.5, 1, 2], np.float32),
        "basis": np.array([[127, 1, 0], [2, 100, -3], [0, 5, 90]], np.int8),
        "classes": np.array([60, 40, 1], np.uint8),
    }
    ones = np.ones(5, np.float32)
    second = Part(3, ones, 2 * ones, 3 * ones, None, np.full(5, 30, np.uint8), adaptive=True)
    return Profile(
        LAYOUT, 2, 3, (Block((Part(**{**numbers, **changes}), second), np.arange(8, dtype=np.float32), -0.5),)
    )


def repacked(data: bytes, change) -> bytes:
    content = bytearray(zstandard.ZstdDecompressor().decompress(data[HEAD_BYTES:]))
    changed = change(content)
    content = content if changed is None else changed
    return data[:HEAD_BYTES] + zstandard.ZstdCompressor().compress(bytes(content))


def test_longer_steps_are_those_of_calibrated_parts():
    before, after = small(), small().scaled(2.0)
    calibrated, adaptive = after.blocks[0].parts
    np.testing.assert_array_equal(calibrated.scale, 2 * before.blocks[0].parts[0].scale)
    # Twice the step is an octave, six classes, down; there is none below 0.
    np.testing.assert_array_equal(calibrated.classes, [54, 34, 0])
    np.testing.assert_array_equal(calibrated.basis, before.blocks[0].parts[0].basis)
    np.testing.assert_array_equal(adaptive.scale, before.blocks[0].parts[1].scale)
    np.testing.assert_array_equal(adaptive.classes, before.blocks[0].parts[1].classes)
    assert after.digest != before.digest
    assert small().scaled(1.0).digest == before.digest


def test_a_profile_comes_back_from_its_file():
    profile = small()
    read = Profile.from_bytes(profile.data)
    assert (read.data, read.digest, read.layout) == (profile.data, profile.digest, LAYOUT)
    assert (read.block_layers, read.refinements) == (2, 3)
    assert np.array_equal(read.blocks[0].gain_weights, profile.blocks[0].gain_weights)
    assert read.blocks[0].gain_bias == -0.5
    for mine, theirs in zip(read.blocks[0].parts, profile.blocks[0].parts, strict=True):
        for name in ("start", "mean", "origin_mean", "scale", "classes", "adaptive", "basis"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name


def test_a_profile_that_was_read_keeps_its_name():
    """Another zstandard may compress to other bytes; the name is that of the bytes there are."""
    profile = small()
    other = repacked(profile.data, lambda content: None)
    assert other != profile.data
    read = Profile.from_bytes(other)
    assert read.data == other
    assert read.digest != profile.digest


def test_forward_and_inverse_undo_each_other():
    profile = small()
    rng = np.random.default_rng(2)
    for part in profile.blocks[0].parts:
        channels = (1000 * rng.normal(size=(20, part.width))).astype(np.float32)
        steps = part.forward(channels)
        assert steps.shape == (part.width, 20)
        back = part.inverse(np.rint(steps).astype(np.int32), np.ones(20, np.float32))
        reach = 127 * part.width * part.scale.max() if part.basis is not None else part.scale.max()
        assert np.abs(back - channels).max() <= reach
    exact = profile.blocks[0].parts[0]
    symbols = rng.integers(-(2**20), 2**20, (2, 20)).astype(np.int32)
    sums = symbols.T.astype(object) @ exact.basis[:2].astype(object)
    assert np.array_equal(exact.inverse(symbols, np.ones(20, np.float32)), sums.astype(np.float32) * exact.scale)


BASIS = np.array([[127, 1, 0], [2, 100, -3], [0, 5, 90]], np.int8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mean": np.array([0, np.nan, 0], np.float32)}, "not finite"),
        ({"origin_mean": np.array([0, np.inf, 0], np.float32)}, "not finite"),
        ({"scale": np.array([1, 0, 1], np.float32)}, "not positive"),
        ({"scale": np.array([1, -1, 1], np.float32)}, "not positive"),
        ({"scale": np.array([1, np.inf, 1], np.float32)}, "not finite"),
        ({"classes": np.array([1, FINE_CLASSES, 1], np.uint8)}, f"scale class {FINE_CLASSES}"),
        ({"basis": np.where(BASIS == 127, -128, BASIS).astype(np.int8)}, "-128"),
        ({"adaptive": True}, "adaptive and has a basis"),
        ({"start": 1}, "gap or overlaps"),
    ],
    ids=lambda item: item if isinstance(item, str) else next(iter(item)),
)
def test_hostile_numbers_are_invalid_data(changes, says):
    with pytest.raises(InvalidData, match=says):
        Profile.from_bytes(small(**changes).data)


@pytest.mark.parametrize("rows", [[[1, 2, 3], [2, 4, 6], [1, 1, 1]], [[0, 0, 0], [1, 0, 0], [0, 1, 0]]])
def test_a_basis_that_cannot_be_inverted_decodes_but_does_not_encode(rows):
    profile = Profile.from_bytes(small(basis=np.array(rows, np.int8)).data)
    part = profile.blocks[0].parts[0]
    part.inverse(np.ones((3, 4), np.int32), np.ones(4, np.float32))
    with pytest.raises(InvalidData, match="basis"):
        part.forward(np.ones((4, 3), np.float32))


def layout_end() -> int:
    return len(LAYOUT.to_bytes())


@pytest.mark.parametrize(
    ("offset", "form", "value", "says"),
    [
        (0, "<H", 0, "blocks of 0"), (0, "<H", 3, "blocks of 3"), (0, "<H", 65535, "blocks"),
        (2, "B", 4, "refinements"),
        (3, "B", 1, "blocks"), (4, "<H", 0, "0 parts"), (4, "<H", 65535, "65535 parts"), (6, "<H", 2, "block of"),
        (6, "<H", 0, "part"), (8, "<f", float("nan"), "block of"), (12, "<f", float("inf"), "not finite"),
        (44, "<I", 4, "gap"), (48, "<I", 0, "part of 0"), (48, "<I", 2**32 - 1, "part of"),
        (48, "<I", 4096, "ends after"),
        (52, "B", 2, "part of"), (53, "B", 2, "part of"), (54, "<H", 1, "part of"),
    ],
)  # fmt: skip
def test_hostile_counts_are_invalid_data_before_anything_is_allocated(offset, form, value, says):
    data = repacked(small().data, lambda content: struct.pack_into(form, content, layout_end() + offset, value))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidData, match=says):
            Profile.from_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_files_that_are_cut_or_longer_are_invalid_data():
    data = small().data
    for length in range(len(data)):
        with pytest.raises(InvalidData):
            Profile.from_bytes(data[:length])
    with pytest.raises(InvalidData):
        Profile.from_bytes(data + b"x")
    with pytest.raises(InvalidData, match="left over"):
        Profile.from_bytes(repacked(data, lambda content: content + b"x"))
    content_bytes = len(zstandard.ZstdDecompressor().decompress(data[HEAD_BYTES:]))
    for cut in range(content_bytes):
        with pytest.raises(InvalidData):
            Profile.from_bytes(repacked(data, lambda content, cut=cut: content[:cut]))


@pytest.mark.parametrize(
    ("offset", "form", "value"), [(0, "4s", b"KVLC"), (4, "<H", 1), (6, "<H", 1), (8, "<I", 2**32 - 1)]
)
def test_heads_of_other_files_are_invalid_data(offset, form, value):
    data = bytearray(small().data)
    struct.pack_into(form, data, offset, value)
    with pytest.raises(InvalidData):
        Profile.from_bytes(bytes(data))


def test_a_bomb_is_refused_before_it_is_unpacked():
    frame = zstandard.ZstdCompressor().compress(b"")
    bomb = bytearray(frame)
    declared = limits.PROFILE_BYTES_MAX + 1
    # A frame header of eight content-size bytes, in place of the one there is.
    bomb[:] = frame[:4] + bytes([0xE0]) + declared.to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(InvalidData, match=str(declared)):
        Profile.from_bytes(small().data[:HEAD_BYTES] + bytes(bomb))


def test_what_blending_left_in_a_profile_is_kept_and_changes_its_name():
    plain, gated = small(), replace(small(), blend_gate=b"what was measured")
    read = Profile.from_bytes(gated.data)
    assert (read.blend_gate, read.digest) == (b"what was measured", gated.digest)
    assert read.scaled(2.0).blend_gate == b"what was measured"
    assert Profile.from_bytes(plain.data).blend_gate == b""
    assert gated.digest != plain.digest


def test_a_gate_that_is_too_long_or_empty_is_refused():
    with pytest.raises(InvalidData, match="4097 bytes of a blend gate"):
        _ = replace(small(), blend_gate=bytes(limits.BLEND_GATE_BYTES_MAX + 1)).data
    data = bytearray(small().data)
    data[6] = 1  # says that there is one: what stands there is a number of layers and of refinements
    with pytest.raises(InvalidData, match="bytes of a blend gate"):
        Profile.from_bytes(bytes(data))
    data[6] = 2
    with pytest.raises(InvalidData, match="profile starts with"):
        Profile.from_bytes(bytes(data))
