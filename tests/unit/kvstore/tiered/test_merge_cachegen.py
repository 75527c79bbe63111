"""CacheGen's levels put one by one: each stays, because none needs another."""

import itertools

import pytest
from blake3 import blake3

from kvloom.codec.container import Container, ContainerWriter, verify
from kvloom.codec.layout import Kind, Layout
from kvloom.codec.level import DRAFT, ECONOMY, EXACT, FINE, LOSSY_LEVELS, STANDARD, Level, LossyCodec
from kvloom.kvstore.tiered.merge import covers, merge_containers

LAYERS = 2
LAYOUT = Layout.uniform(layers=LAYERS, kv_heads=1, head_dim=4)
MINE, OTHER = (blake3(name).digest() for name in (b"mine", b"other"))


def made(*levels: Level, profile: bytes = MINE, mode: LossyCodec = LossyCodec.CACHEGEN, mark: bytes = b"") -> bytes:
    """A container whose segments say what they are."""
    lossy = any(level != EXACT for level in levels)
    writer = ContainerWriter(
        LAYOUT,
        tokens=3,
        first_position=7,
        block_layers=LAYERS if lossy and mode is LossyCodec.KVLOOM else 0,
        profile_digest=profile,
        codec=mode,
    )
    for level in levels:
        if level != EXACT and mode is LossyCodec.KVLOOM:
            writer.put(level, 0, None, f"{level}".encode() + mark)
            continue
        for layer, kind in itertools.product(range(LAYERS), Kind):
            writer.put(level, layer, kind, f"{level} {layer} {kind.name}".encode() + mark)
    return writer.commit()


def test_levels_put_one_by_one_are_joined():
    stored = made(STANDARD)
    for level in (FINE, EXACT, DRAFT, ECONOMY):
        stored = bytes(merge_containers(stored, made(level)))
    assert stored == made(*LOSSY_LEVELS, EXACT)


def test_a_level_put_again_replaces_its_own_kind_and_no_other():
    stored = merge_containers(made(DRAFT, STANDARD, mark=b" old"), made(STANDARD, FINE, mark=b" new"))
    container = Container.parse(stored)
    assert container.header.levels == (DRAFT, STANDARD, FINE)
    for level, mark in ((DRAFT, b" old"), (STANDARD, b" new"), (FINE, b" new")):
        assert bytes(container.segment(level, 1, Kind.VALUES)).endswith(mark)


def test_what_is_stored_already_stays_as_it_is():
    old, new = made(DRAFT, STANDARD), made(DRAFT)
    assert merge_containers(old, new) is old
    assert merge_containers(new, old) is old
    assert covers(verify(old), verify(new))
    assert not covers(verify(made(FINE)), verify(old)), "a finer level does not hold the coarser ones"


@pytest.mark.parametrize("mode", list(LossyCodec))
def test_of_two_codecs_the_newer_lossy_stream_stays_and_exact_too(mode):
    other = next(item for item in LossyCodec if item is not mode)
    old = made(DRAFT, ECONOMY, EXACT, profile=OTHER, mode=other)
    header = verify(merge_containers(old, made(DRAFT, profile=MINE, mode=mode)))
    assert header.codec is mode
    assert header.profile_digest == MINE
    assert header.levels == (DRAFT, EXACT)


def test_levels_of_two_profiles_are_not_mixed():
    header = verify(merge_containers(made(DRAFT, FINE, profile=OTHER), made(STANDARD, profile=MINE)))
    assert header.levels == (STANDARD,)
    assert header.profile_digest == MINE
