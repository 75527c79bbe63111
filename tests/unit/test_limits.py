"""The limits hang together: each fits its field on the wire, and the derived ones follow from what they bound."""

import re
import struct
from types import ModuleType

import numpy as np
import pytest

from kvloom import limits
from kvloom.codec.container import ContainerWriter, Kind, parse_header
from kvloom.codec.layout import LayerLayout, Layout, Rope
from kvloom.codec.level import EXACT, LOSSY_LEVELS
from kvloom.daemon.planner.simulate import limits as simulated
from kvloom.errors import LayoutMismatch
from kvloom.kvstore import network_limits as network

NAMES = [(module, name) for module in (limits, network, simulated) for name in vars(module) if name.isupper()]
UNITS = ("BYTES", "TOKENS", "SECONDS", "LAYERS", "HEADS", "MAX", "DEFAULT")


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_limit_is_a_positive_number_whose_name_says_what_it_counts(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    assert isinstance(value, int | float)
    assert value > 0
    assert re.search(rf"_({'|'.join(UNITS)})(_|$)", name), name


def test_counts_fit_their_fields_in_the_header() -> None:
    assert limits.LAYERS_MAX < 2**16
    assert limits.BLOCK_LAYERS_MAX < 2**8
    assert limits.LOSSY_LEVELS_MAX < 2**8
    assert limits.CHUNK_TOKENS_MAX < 2**32
    assert limits.POSITION_MAX < 2**32
    assert limits.CONTAINER_BYTES_MAX < 2**32
    assert limits.VOCABULARY_MAX == 2**32 - 1


def test_there_is_room_for_every_level() -> None:
    assert len(LOSSY_LEVELS) <= limits.LOSSY_LEVELS_MAX
    assert all(level.code < EXACT.code for level in LOSSY_LEVELS)


def test_the_header_limit_covers_the_largest_header() -> None:
    layout = Layout(Layout.uniform(layers=1, kv_heads=1, head_dim=1).dtype, (LayerLayout(1, 1),) * limits.LAYERS_MAX)
    writer = ContainerWriter(layout, tokens=1, first_position=0, block_layers=1, profile_digest=b"p" * 32)
    for level in (*LOSSY_LEVELS, EXACT):
        for layer in range(limits.LAYERS_MAX):
            for kind in Kind if level == EXACT else (None,):
                writer.put(level, layer, kind, b"")
    data = writer.commit()
    header = parse_header(data)
    unused = limits.SEGMENTS_MAX - len(header.segments)
    (layout_bytes,) = struct.unpack_from("<I", data, 24)
    assert header.header_bytes + 16 * unused + limits.LAYOUT_BYTES_MAX - layout_bytes == (
        limits.CONTAINER_HEADER_BYTES_MAX
    )


def test_a_layout_too_long_to_be_read_cannot_be_written(rng: np.random.Generator) -> None:
    layers = tuple(LayerLayout(1, 4096, Rope(tuple(rng.random(2048).tolist()))) for _ in range(2))
    layout = Layout(Layout.uniform(layers=1, kv_heads=1, head_dim=1).dtype, layers)
    with pytest.raises(LayoutMismatch, match=str(limits.LAYOUT_BYTES_MAX)):
        layout.to_bytes()


def test_a_default_chunk_is_allowed() -> None:
    assert limits.CHUNK_TOKENS_DEFAULT <= limits.CHUNK_TOKENS_MAX
    assert limits.CHUNK_TOKENS_MAX <= limits.PREFIX_TOKENS_MAX


def test_the_longest_questions_fit_what_is_counted_before_they_are_parsed() -> None:
    assert limits.PREFIX_TOKENS_MAX < limits.JSON_ITEMS_MAX
    assert limits.PREFIX_TOKENS_MAX * 7 < limits.PREFIX_BODY_BYTES_MAX  # six digits and a comma
    assert limits.KEYS_PER_REQUEST_MAX * 67 < limits.KEYS_BODY_BYTES_MAX
    assert limits.PREFIX_BODY_BYTES_MAX * limits.JSON_PARSED_BYTES_PER_BYTE <= limits.INFLIGHT_BYTES_MAX // 2


def test_whoever_sends_nothing_is_gone_within_ten_seconds() -> None:
    assert limits.STRANGER_SECONDS_MAX + limits.TLS_HANDSHAKE_SECONDS_MAX < 10
    assert limits.HEAD_SECONDS_MAX < 10
    assert limits.BODY_WINDOW_SECONDS + limits.REFUSED_BODY_SECONDS_MAX < 10
    assert limits.STRANGERS_MAX < limits.CONNECTIONS_MAX // 2
