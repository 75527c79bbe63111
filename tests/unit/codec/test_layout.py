"""The layout's canonical bytes: one encoding per layout, and nothing hostile gets through the parser."""

import json
import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.codec.layout import SAME_AS_KEYS, AttentionKind, KeyCoding, Kind, KvDtype, LayerLayout, Layout, Rope
from kvloom.errors import LayoutMismatch, MalformedContainer

frequencies = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def ropes(draw: st.DrawFn, head_dim: int) -> Rope | None:
    if head_dim < 2 or draw(st.booleans()):
        return None
    pairs = tuple(draw(st.lists(frequencies, min_size=1, max_size=head_dim // 2)))
    return Rope(pairs, draw(st.booleans()), draw(st.integers(0, head_dim - 2 * len(pairs))))


@st.composite
def layers(draw: st.DrawFn) -> LayerLayout:
    head_dim = draw(st.integers(2, 16))
    value_head_dim = draw(st.just(SAME_AS_KEYS) | st.integers(0, 16))
    return LayerLayout(
        draw(st.integers(1, limits.KV_HEADS_MAX)),
        head_dim,
        draw(ropes(head_dim)),
        draw(st.sampled_from(AttentionKind)),
        draw(st.integers(0, limits.POSITION_MAX)),
        value_head_dim,
        draw(ropes(head_dim if value_head_dim == SAME_AS_KEYS else value_head_dim)),
    )


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    kinds = draw(st.lists(layers(), min_size=1, max_size=3))
    stack = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=12))
    count = draw(st.integers(1, 64))
    return Layout(draw(st.sampled_from(KvDtype)), tuple(stack), draw(st.integers(0, count - 1)), count)


GEMMA_LIKE = Layout(
    KvDtype.BFLOAT16,
    (
        *(LayerLayout(1, 256, Rope((1.0, 0.1)), AttentionKind.SLIDING, 512),) * 5,
        LayerLayout(1, 256, Rope((1.0, 0.001), interleaved=True)),
        LayerLayout(2, 64),
    ),
    1,
    2,
)
LATENT_LIKE = Layout(
    KvDtype.BFLOAT16,
    (
        LayerLayout(1, 64, Rope((1.0, 0.1), interleaved=True, first_dim=60), value_head_dim=0),
        LayerLayout(1, 60, Rope((0.0,)), value_head_dim=4, value_rope=Rope((1.0, 0.1))),
        LayerLayout(16, 24, Rope((1.0, 0.1), first_dim=20), value_head_dim=16),
    ),
)
DOCUMENT: dict[str, Any] = json.loads(GEMMA_LIKE.to_bytes())


def canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@given(layouts())
def test_bytes_and_layout_are_one_to_one(layout: Layout) -> None:
    data = layout.to_bytes()
    again = Layout.from_bytes(data)
    assert again == layout
    assert again.to_bytes() == data
    assert again.digest() == layout.digest()


@given(layouts(), layouts())
def test_different_layouts_have_different_digests(one: Layout, other: Layout) -> None:
    assert (one.digest() == other.digest()) == (one == other)


def test_every_field_changes_the_digest() -> None:
    layer = GEMMA_LIKE.layers[0]
    assert layer.rope is not None
    changed_layers = [
        replace(layer, kv_heads=2),
        replace(layer, head_dim=128),
        replace(layer, rope=None),
        replace(layer, rope=Rope((1.0, 0.2))),
        replace(layer, rope=replace(layer.rope, interleaved=True)),
        replace(layer, attention=AttentionKind.FULL),
        replace(layer, window_tokens=511),
        replace(layer, rope=replace(layer.rope, first_dim=2)),
        replace(layer, value_head_dim=0),
        replace(layer, value_head_dim=128),
        replace(layer, value_rope=layer.rope),
    ]
    variants = [
        GEMMA_LIKE,
        replace(GEMMA_LIKE, dtype=KvDtype.FLOAT16),
        replace(GEMMA_LIKE, shard_rank=0),
        replace(GEMMA_LIKE, shard_count=3),
        replace(GEMMA_LIKE, layers=GEMMA_LIKE.layers[1:]),
        *(replace(GEMMA_LIKE, layers=(item, *GEMMA_LIKE.layers[1:])) for item in changed_layers),
    ]
    assert len({item.digest() for item in variants}) == len(variants)


def test_the_encoding_is_frozen() -> None:
    """Stored containers and keys depend on these bytes."""
    layout = Layout.uniform(layers=2, kv_heads=3, head_dim=64, dtype=KvDtype.BFLOAT16, rope=Rope((1.0, 0.5)))
    assert layout.to_bytes() == (
        b'{"dtype":"bfloat16","layers":[{"attention":"full","count":2,"head_dim":64,"kv_heads":3,"rope":0,"window":0}],'
        b'"ropes":[{"f":[1.0,0.5],"interleaved":false}],"shard":[0,1]}'
    )


def test_a_digest_is_frozen() -> None:
    """Every key of a stored chunk is made with one: fields added since must not change it."""
    assert GEMMA_LIKE.digest().hex()[:32] == "1e8ea8ea86343c70f094bc048dc5ac88"


def test_the_encoding_of_latents_is_frozen() -> None:
    assert LATENT_LIKE.to_bytes() == (
        b'{"dtype":"bfloat16","layers":['
        b'{"attention":"full","count":1,"head_dim":64,"kv_heads":1,"rope":0,"value_head_dim":0,"window":0},'
        b'{"attention":"full","count":1,"head_dim":60,"kv_heads":1,"rope":1,"value_head_dim":4,"value_rope":2,"window":0},'
        b'{"attention":"full","count":1,"head_dim":24,"kv_heads":16,"rope":3,"value_head_dim":16,"window":0}],'
        b'"ropes":[{"f":[1.0,0.1],"first_dim":60,"interleaved":true},{"f":[0.0],"interleaved":false},'
        b'{"f":[1.0,0.1],"interleaved":false},{"f":[1.0,0.1],"first_dim":20,"interleaved":false}],"shard":[0,1]}'
    )
    assert Layout.from_bytes(LATENT_LIKE.to_bytes()) == LATENT_LIKE


def test_what_says_nothing_is_not_written_down() -> None:
    """One layout, one encoding: a default spelled out is another's bytes."""
    for place, name, value in (
        (("layers", 0), "value_head_dim", 256),
        (("layers", 0), "value_head_dim", SAME_AS_KEYS),
        (("layers", 0), "value_rope", None),
        (("ropes", 0), "first_dim", 0),
    ):
        with pytest.raises(MalformedContainer):
            Layout.from_bytes(mutated((*place, name), value))
    assert LayerLayout(2, 64) == LayerLayout(2, 64, value_head_dim=64)


def test_given_as_it_is_keeps_the_shapes_and_no_rope() -> None:
    given = LATENT_LIKE.as_given()
    assert [(layer.rope, layer.value_rope) for layer in given.layers] == [(None, None)] * 3
    assert {layer.key_coding for layer in given.layers} == {KeyCoding.AS_GIVEN}
    assert {layer.key_coding for layer in LATENT_LIKE.layers} == {KeyCoding.UNROTATED}
    assert [layer.value_width for layer in given.layers] == [0, 4, 256]
    assert given.digest() != LATENT_LIKE.digest()


def test_sizes_are_those_of_the_tensors() -> None:
    layout = Layout(KvDtype.FLOAT16, (LayerLayout(2, 8), LayerLayout(1, 4)))
    assert layout.values_per_token == 2 * (2 * 8 + 1 * 4)
    assert layout.bytes_per_token == layout.values_per_token * 2
    assert [layout.layers[0].width_of(kind) for kind in Kind] == [16, 16]
    assert [LATENT_LIKE.layers[2].width_of(kind) for kind in Kind] == [16 * 24, 16 * 16]
    assert LATENT_LIKE.values_per_token == 64 + (60 + 4) + 16 * (24 + 16)
    assert [dtype.numpy for dtype in KvDtype] == [
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
    ]
    assert all(dtype.bits == 8 * dtype.numpy.itemsize for dtype in KvDtype)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": ()}, "layers is 0"),
        ({"layers": (LayerLayout(1, 8),) * (limits.LAYERS_MAX + 1)}, f"1 to {limits.LAYERS_MAX}"),
        ({"layers": (LayerLayout(0, 8),)}, "kv heads of layer 0 is 0"),
        ({"layers": (LayerLayout(limits.KV_HEADS_MAX + 1, 8),)}, str(limits.KV_HEADS_MAX)),
        ({"layers": (LayerLayout(1, 0),)}, "head dim of layer 0 is 0"),
        ({"layers": (LayerLayout(1, limits.HEAD_DIM_MAX + 1),)}, str(limits.HEAD_DIM_MAX)),
        ({"layers": (LayerLayout(1, 8, window_tokens=-1),)}, "window of layer 0 is -1"),
        ({"layers": (LayerLayout(1, 8, value_head_dim=-2),)}, "value head dim of layer 0 is -2"),
        ({"layers": (LayerLayout(1, 8, value_head_dim=limits.HEAD_DIM_MAX + 1),)}, str(limits.HEAD_DIM_MAX)),
        ({"layers": (LayerLayout(1, 8, value_head_dim=0, value_rope=Rope((1.0,))),)}, "rotary dim of layer 0 is 2"),
        ({"layers": (LayerLayout(1, 8, Rope((1.0,), first_dim=7)),)}, "first rotated dim of layer 0 is 7"),
        ({"layers": (LayerLayout(1, 8, Rope((1.0,), first_dim=-1)),)}, "first rotated dim of layer 0 is -1"),
        ({"layers": (LayerLayout(1, 2, Rope((1.0, 1.0))),)}, "rotary dim of layer 0 is 4"),
        ({"layers": (LayerLayout(1, 2, Rope(())),)}, "rotary dim of layer 0 is 0"),
        ({"layers": (LayerLayout(1, 8, Rope((math.inf,))),)}, "not finite"),
        ({"layers": (LayerLayout(1, 8, Rope((math.nan,))),)}, "not finite"),
        ({"shard_rank": 2}, "shard rank is 2"),
        ({"shard_rank": -1}, "shard rank is -1"),
        ({"shard_count": 0}, "shard count is 0"),
        ({"shard_count": 2**16}, "shard count is 65536"),
    ],
)
def test_a_layout_out_of_bounds_names_the_value_and_the_limit(change: dict[str, Any], says: str) -> None:
    with pytest.raises(LayoutMismatch, match=says):
        replace(GEMMA_LIKE, **change)


def mutated(path: tuple[object, ...], value: object) -> bytes:
    document = json.loads(json.dumps(DOCUMENT))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return canonical(document)


HOSTILE_VALUES = [
    None, True, -1, 0, 3, 2**31, 2**70, 1.5, 1e308, math.nan, math.inf, "", "8", "float32", [], [1], {}, {"f": [1.0]}
]  # fmt: skip
PLACES = [
    ("dtype",), ("layers",), ("ropes",), ("shard",), ("shard", 0), ("shard", 1), ("layers", 0),
    ("ropes", 0), ("ropes", 0, "f"), ("ropes", 0, "f", 0), ("ropes", 0, "interleaved"),
    *(("layers", 1, field) for field in ("attention", "count", "head_dim", "kv_heads", "rope", "window")),
    ("layers", 1, "value_head_dim"), ("layers", 1, "value_rope"), ("ropes", 0, "first_dim"),
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_hostile_value_at_any_place_is_malformed_or_another_valid_layout(place: tuple[object, ...]) -> None:
    for value in HOSTILE_VALUES:
        data = mutated(place, value)
        try:
            layout = Layout.from_bytes(data)
        except MalformedContainer:
            continue
        assert layout.to_bytes() == data


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"1", b'"x"', b"{", b"\xff\xfe", b"\x00" * 8, canonical(DOCUMENT)[:-1],
        canonical(DOCUMENT) + b" ", json.dumps(DOCUMENT).encode(), canonical({**DOCUMENT, "extra": 1}),
        canonical({**DOCUMENT, "layers": []}), canonical({**DOCUMENT, "layers": DOCUMENT["layers"][:1] * 2}),
        canonical({**DOCUMENT, "ropes": DOCUMENT["ropes"] * 2}), canonical({**DOCUMENT, "ropes": []}),
        b"[" * 60_000, b'{"a":' * 12_000, b"9" * 60_000, canonical({**DOCUMENT, "shard": [0, 1, 2]}),
        canonical(DOCUMENT).decode().encode("utf-16"), b"x" * (limits.LAYOUT_BYTES_MAX + 1),
    ],
    ids=lambda data: repr(data[:24]),
)  # fmt: skip
def test_bytes_that_are_no_canonical_layout_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedContainer):
        Layout.from_bytes(data)


def test_a_short_layout_cannot_stand_for_too_many_layers() -> None:
    run = {**DOCUMENT["layers"][0], "count": limits.LAYERS_MAX}
    for count in (2, 500):
        with pytest.raises(MalformedContainer, match=f"{limits.LAYERS_MAX} layers"):
            Layout.from_bytes(canonical({**DOCUMENT, "layers": [run] * count}))
    with pytest.raises(MalformedContainer):
        Layout.from_bytes(mutated(("layers", 0, "count"), 10**12))


def test_floats_written_shorter_than_canonical_cannot_grow_past_the_limit() -> None:
    """``[0,0,…]`` is half as long as its canonical ``[0.0,0.0,…]``: the answer is still one typed error."""
    count = limits.LAYOUT_BYTES_MAX // 2 - 200
    data = canonical({**DOCUMENT, "ropes": [{"f": [0] * count, "interleaved": False}, DOCUMENT["ropes"][1]]})
    assert len(data) <= limits.LAYOUT_BYTES_MAX
    with pytest.raises(MalformedContainer):
        Layout.from_bytes(data)
    many = [{"f": [number] * 2000, "interleaved": False} for number in range(10)]
    runs = [{**DOCUMENT["layers"][-1], "head_dim": 4000, "rope": index} for index in range(10)]
    data = canonical({**DOCUMENT, "layers": runs, "ropes": many})
    assert len(data) <= limits.LAYOUT_BYTES_MAX
    with pytest.raises(MalformedContainer):
        Layout.from_bytes(data)
