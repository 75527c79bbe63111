"""The container format: every field has bounds, every bit is guarded, and every subset of segments is a container."""

import struct
from collections.abc import Callable

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.codec.container import (
    NO_PROFILE,
    UNKEYED,
    Container,
    ContainerWriter,
    Kind,
    check_segment,
    join_layers,
    parse_header,
    select,
    verify,
)
from kvloom.codec.layout import Layout
from kvloom.codec.level import DRAFT, ECONOMY, EXACT, Level
from kvloom.errors import (
    BodyTooLarge,
    ChunkTooLong,
    EmptyChunk,
    InvalidData,
    KeyMismatch,
    KvloomError,
    LevelNotStored,
    MalformedContainer,
    TruncatedBody,
)

Make = Callable[..., bytes]
ALL = (DRAFT, ECONOMY, EXACT)
LEVEL_SETS = [(EXACT,), (DRAFT,), (DRAFT, ECONOMY), (DRAFT, EXACT), ALL]

# Where docs/FORMAT.md says each field of the fixed header stands, written out once more on purpose.
FIELDS = {
    "magic": (0, "4s"), "format": (4, "<H"), "flags": (6, "<H"), "header_bytes": (8, "<I"), "tokens": (12, "<I"),
    "first_position": (16, "<I"), "layers": (20, "<H"), "levels": (22, "<B"), "block_layers": (23, "<B"),
    "layout_bytes": (24, "<I"), "segments": (28, "<I"), "content_key": (32, "32s"), "profile": (64, "32s"),
}  # fmt: skip
FIXED_BYTES, ENTRY_BYTES, CHECKSUM_BYTES = 96, 16, 8


def field(data: bytes, name: str) -> int | bytes:
    offset, kind = FIELDS[name]
    return struct.unpack_from(kind, data, offset)[0]


def reseal(data: bytearray) -> bytes:
    """Make the header's checksum right again after a change that leaves its length alone."""
    stop = int(field(data, "header_bytes"))
    data[stop - CHECKSUM_BYTES : stop] = blake3(data[: stop - CHECKSUM_BYTES]).digest(length=CHECKSUM_BYTES)
    return bytes(data)


def with_field(data: bytes, name: str, value: int | bytes) -> bytes:
    changed = bytearray(data)
    offset, kind = FIELDS[name]
    struct.pack_into(kind, changed, offset, value)
    return bytes(changed) if name == "header_bytes" else reseal(changed)


def with_entry(data: bytes, index: int, **values: int) -> bytes:
    changed = bytearray(data)
    offset = FIXED_BYTES + int(field(data, "layout_bytes")) + index * ENTRY_BYTES
    for name, value in values.items():
        place, kind = {"level": (0, "<B"), "kind": (1, "<B"), "layer": (2, "<H"), "length": (4, "<I")}[name]
        struct.pack_into(kind, changed, offset + place, value)
    return reseal(changed)


@pytest.mark.parametrize("levels", LEVEL_SETS, ids=str)
def test_what_was_put_is_what_is_read(container_bytes: Make, levels: tuple[Level, ...]) -> None:
    data = container_bytes(levels, tokens=7, first_position=1234, block_layers=2)
    container = Container.parse(data)
    header = container.header
    assert (header.tokens, header.first_position) == (7, 1234)
    assert header.block_layers == (0 if levels == (EXACT,) else 2)
    assert header.content_key == field(data, "content_key") != UNKEYED
    assert header.profile_digest == field(data, "profile") != NO_PROFILE
    assert header.levels == levels
    assert header.layers == range(3)
    assert header.total_bytes == len(data)
    rewritten = ContainerWriter(
        header.layout,
        tokens=7,
        first_position=1234,
        block_layers=2,
        content_key=header.content_key,
        profile_digest=header.profile_digest,
    )
    for segment in reversed(header.segments):
        payload = container.segment(segment.level, segment.layer, segment.kind)
        check_segment(segment, payload)
        rewritten.put(segment.level, segment.layer, segment.kind, bytes(payload))
    assert rewritten.commit() == data


def test_the_bytes_are_frozen(container_bytes: Make) -> None:
    """Disks hold these bytes: a change of this digest is a change of format and needs a new number.

    How the layout is compressed is left out: that is up to the version of zstandard.
    """
    data = container_bytes(layers=5, block_layers=2, tokens=7, first_position=9)
    packed = int(field(data, "layout_bytes"))
    layout = zstandard.ZstdDecompressor().decompress(data[FIXED_BYTES : FIXED_BYTES + packed])
    rest = bytearray(
        data[:FIXED_BYTES] + data[FIXED_BYTES + packed : int(field(data, "header_bytes")) - CHECKSUM_BYTES]
    )
    rest[8:12] = rest[24:28] = bytes(4)
    segments = data[int(field(data, "header_bytes")) :]
    assert blake3(layout + rest + segments).hexdigest()[:32] == "3a0be673cee058bd0cca275c743a32aa"


def test_a_layout_that_is_not_one_frame_is_refused(container_bytes: Make) -> None:
    data = container_bytes()
    packed = int(field(data, "layout_bytes"))
    layout = data[FIXED_BYTES : FIXED_BYTES + packed]
    frames = {
        "zeros": bytes(packed),
        "plain": zstandard.ZstdDecompressor().decompress(layout),
        "without its size": zstandard.ZstdCompressor(write_content_size=False).compress(b"{}"),
        "empty": zstandard.ZstdCompressor().compress(b""),
        "a bomb": zstandard.ZstdCompressor().compress(bytes(limits.LAYOUT_BYTES_MAX + 1)),
        "cut": layout[:-1],
        "with more behind": layout + b"x",
        "two frames": layout + layout,
        "not canonical": zstandard.ZstdCompressor().compress(zstandard.ZstdDecompressor().decompress(layout) + b" "),
    }
    for name, frame in frames.items():
        changed = bytearray(data)
        changed[FIXED_BYTES : FIXED_BYTES + packed] = frame
        struct.pack_into("<I", changed, 24, len(frame))
        struct.pack_into("<I", changed, 8, int(field(data, "header_bytes")) + len(frame) - packed)
        sealed = reseal(changed)
        try:
            verify(sealed)
        except MalformedContainer as error:
            assert "layout" in str(error), name  # noqa: PT017 (every frame is tried, and a failure names it)
        else:
            pytest.fail(name)


def test_the_parser_takes_any_buffer_and_a_header_alone(container_bytes: Make) -> None:
    data = container_bytes()
    expected = verify(data)
    assert verify(bytearray(data)) == verify(memoryview(data)) == expected
    assert parse_header(data[: expected.header_bytes]) == parse_header(data + b"more") == expected


# Bounds of every field, with the checksum put right.

BAD_FIELDS = [
    ("magic", b"KVLD", MalformedContainer, "KVLC"),
    ("format", 0, MalformedContainer, "format 0"),
    ("format", 1, MalformedContainer, "format 1"),
    ("format", 3, MalformedContainer, "format 3"),
    ("flags", 2, MalformedContainer, "flags 2"),
    ("header_bytes", 0, MalformedContainer, "header of 0 bytes"),
    ("header_bytes", 2**32 - 1, MalformedContainer, "4294967295"),
    ("tokens", 0, EmptyChunk, "0 tokens"),
    ("tokens", limits.CHUNK_TOKENS_MAX + 1, ChunkTooLong, str(limits.CHUNK_TOKENS_MAX)),
    ("tokens", 2**32 - 1, ChunkTooLong, str(limits.CHUNK_TOKENS_MAX)),
    ("first_position", limits.POSITION_MAX - 4, MalformedContainer, str(limits.POSITION_MAX - 5)),
    ("first_position", 2**32 - 1, MalformedContainer, "4294967295"),
    ("layers", 0, MalformedContainer, "0 layers"),
    ("layers", 2, MalformedContainer, "2 layers"),
    ("layers", 2**16 - 1, MalformedContainer, "65535 layers"),
    ("levels", 0, MalformedContainer, "declares 0"),
    ("levels", 1, MalformedContainer, "declares 1"),
    ("levels", 255, MalformedContainer, "255 levels"),
    ("block_layers", 0, MalformedContainer, "blocks of 0 layers, 2 lossy levels"),
    ("block_layers", 2, MalformedContainer, "out of order"),
    ("block_layers", 4, MalformedContainer, "blocks of 4 layers"),
    ("block_layers", 255, MalformedContainer, "blocks of 255 layers"),
    ("layout_bytes", limits.LAYOUT_BYTES_MAX + 1, MalformedContainer, str(limits.LAYOUT_BYTES_MAX)),
    ("layout_bytes", 0, MalformedContainer, "its counts give"),
    ("segments", limits.SEGMENTS_MAX + 1, MalformedContainer, str(limits.SEGMENTS_MAX)),
    ("segments", 0, MalformedContainer, "its counts give"),
    ("segments", 2**32 - 1, MalformedContainer, str(limits.SEGMENTS_MAX)),
    ("profile", NO_PROFILE, MalformedContainer, "no profile"),
]


@pytest.mark.parametrize(("name", "value", "error", "says"), BAD_FIELDS, ids=lambda item: str(item)[:24])
def test_a_field_out_of_bounds_has_its_error_and_names_the_limit(
    container_bytes: Make, name: str, value: int | bytes, error: type[KvloomError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        verify(with_field(container_bytes(), name, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", limits.CHUNK_TOKENS_MAX), ("tokens", 1), ("first_position", limits.POSITION_MAX - 5),
        ("content_key", UNKEYED),
    ],
)  # fmt: skip
def test_a_field_at_its_bound_is_accepted(container_bytes: Make, name: str, value: int | bytes) -> None:
    verify(with_field(container_bytes(), name, value))


@pytest.mark.parametrize(
    ("index", "values"),
    [
        (0, {"level": 2}), (0, {"level": 4}), (0, {"level": 254}), (0, {"level": 1}), (0, {"level": 255}),
        (0, {"kind": 0}), (0, {"kind": 1}), (0, {"kind": 3}), (0, {"layer": 1}), (0, {"layer": 3}),
        (0, {"layer": 2**16 - 1}), (11, {"layer": 3}), (11, {"level": 1}), (11, {"kind": 2}), (6, {"kind": 2}),
        (3, {"level": 0}), (7, {"layer": 1, "kind": 0}), (2, {"layer": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_a_segment_table_that_is_not_complete_and_in_order_is_malformed(
    container_bytes: Make, index: int, values: dict[str, int]
) -> None:
    with pytest.raises(MalformedContainer):
        verify(with_entry(container_bytes(), index, **values))


def test_lengths_that_add_up_to_more_than_the_limit_are_refused_before_anything_is_read(container_bytes: Make) -> None:
    data = with_entry(container_bytes(), 0, length=limits.CONTAINER_BYTES_MAX)
    with pytest.raises(BodyTooLarge, match=str(limits.CONTAINER_BYTES_MAX)):
        parse_header(data)
    data = container_bytes()
    for index in range(12):
        data = with_entry(data, index, length=2**32 - 1)
    with pytest.raises(BodyTooLarge, match=str(limits.CONTAINER_BYTES_MAX)):
        verify(data)


@pytest.mark.parametrize("change", [1, -1, 1000])
def test_a_length_that_is_not_the_segments_own_is_invalid(container_bytes: Make, change: int) -> None:
    data = container_bytes(seed=3)
    index = next(i for i, segment in enumerate(verify(data).segments) if segment.length > 0)
    with pytest.raises(InvalidData):
        verify(with_entry(data, index, length=verify(data).segments[index].length + change))


def test_every_single_bit_is_guarded(container_bytes: Make) -> None:
    data = container_bytes(layers=2, segment_bytes=12)
    verify(data)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidData):
            verify(flipped)


def test_a_flipped_bit_in_a_segment_is_found_by_the_segments_own_check(container_bytes: Make) -> None:
    data = container_bytes()
    segment = next(item for item in verify(data).segments if item.length > 0)
    payload = bytearray(data[segment.offset : segment.byte_range.stop])
    check_segment(segment, payload)
    payload[-1] ^= 0x80
    with pytest.raises(MalformedContainer, match=f"level {segment.level}, layer {segment.layer}"):
        check_segment(segment, payload)
    with pytest.raises(MalformedContainer):
        check_segment(segment, payload + b"\0")


# Truncation.


@pytest.mark.parametrize("levels", LEVEL_SETS, ids=str)
def test_only_a_cut_where_a_lossy_level_ends_is_a_container(container_bytes: Make, levels: tuple[Level, ...]) -> None:
    data = container_bytes(levels, layers=2, segment_bytes=12, seed=1)
    whole = verify(data)
    ends = {whole.level_end(level): level for level in levels if level != EXACT}
    for length in range(len(data)):
        if length in ends:
            assert verify(data[:length]).levels == tuple(item for item in levels if item <= ends[length])
        else:
            with pytest.raises(TruncatedBody):
                verify(data[:length])
    with pytest.raises(TruncatedBody):
        verify(data + b"\0")


@pytest.mark.parametrize("level", [DRAFT, ECONOMY], ids=str)
def test_a_byte_prefix_holds_the_same_segments_as_the_truncated_container(container_bytes: Make, level: Level) -> None:
    data = container_bytes()
    prefix = Container.parse(data[: verify(data).level_end(level)])
    truncated = Container.parse(prefix.truncate(level))
    assert truncated.header.levels == prefix.header.levels
    for segment in truncated.header.segments:
        place = (segment.level, segment.layer, segment.kind)
        assert truncated.segment(*place) == prefix.segment(*place)


@pytest.mark.parametrize(
    ("level", "kept"), [(DRAFT, (DRAFT,)), (ECONOMY, (DRAFT, ECONOMY)), (EXACT, (EXACT,))], ids=str
)
def test_truncating_keeps_what_the_level_needs_and_nothing_else(
    container_bytes: Make, level: Level, kept: tuple[Level, ...]
) -> None:
    whole = Container.parse(container_bytes())
    cut = Container.parse(whole.truncate(level), content_key=whole.header.content_key)
    assert cut.header.levels == kept
    assert cut.truncate(level) == cut.data
    for segment in cut.header.segments:
        place = (segment.level, segment.layer, segment.kind)
        assert cut.segment(*place) == whole.segment(*place)


def test_a_level_that_is_not_there_is_not_stored(container_bytes: Make) -> None:
    container = Container.parse(container_bytes((DRAFT,)))
    with pytest.raises(LevelNotStored, match="stored: draft"):
        container.truncate(ECONOMY)
    with pytest.raises(LevelNotStored):
        container.segment(EXACT, 0, Kind.KEYS)
    with pytest.raises(LevelNotStored):
        container.segment(DRAFT, 99)
    with pytest.raises(LevelNotStored):
        container.segment(DRAFT, 0, Kind.KEYS)


# Selecting layers and joining them again.


def gather(data: bytes, **wanted: object) -> bytes:
    """What the daemon sends: the selection's header and then the ranges it names."""
    selection = select(verify(data), **wanted)  # type: ignore[arg-type]
    sent = b"".join([selection.header, *(data[part.start : part.stop] for part in selection.ranges)])
    assert len(sent) == selection.total_bytes
    return sent


def test_layers_of_lossy_levels_come_in_whole_blocks(container_bytes: Make) -> None:
    whole = container_bytes(layers=5, block_layers=2, segment_bytes=12)
    header = verify(whole)
    assert header.layers == range(5)
    for asked in (range(a, b) for a in range(5) for b in range(a + 1, 6)):
        widened = range(asked.start // 2 * 2, min(5, -(-asked.stop // 2) * 2))
        assert header.whole_blocks(asked) == widened
        for level in (None, DRAFT, ECONOMY):
            part = verify(gather(whole, layers=asked, level=level))
            assert part.layers == widened
            assert {item.layer for item in part.segments if item.kind is None} == set(widened[::2])
        exact = verify(gather(whole, layers=asked, level=EXACT))
        assert (exact.layers, exact.block_layers) == (asked, 0)
        assert exact.whole_blocks(asked) == asked
    assert join_layers([gather(whole, layers=range(2)), gather(whole, layers=range(3, 5))]) == whole


def test_a_level_reads_only_its_bytes_and_layers_only_their_blocks(container_bytes: Make) -> None:
    """What is selected are the ranges of exactly the segments needed, next to each other in one read."""
    header = verify(container_bytes(layers=5, block_layers=2, seed=3))
    for level in header.levels:
        for layers in (None, range(2, 3)):
            selection = select(header, level=level, layers=layers)
            read = {place for part in selection.ranges for place in range(part.start, part.stop)}
            needed = {
                place
                for item in header.segments
                if (item.level == level or (level != EXACT and item.level < level))
                and (layers is None or item.layer == 2)
                for place in range(item.offset, item.byte_range.stop)
            }
            assert read == needed
            if layers is None:
                assert len(selection.ranges) == 1


@given(st.sampled_from(LEVEL_SETS), st.integers(1, 5), st.data())
def test_any_selection_is_a_container_and_the_parts_join_to_the_whole(
    container_bytes: Make, levels: tuple[Level, ...], layers: int, data: st.DataObject
) -> None:
    whole = container_bytes(levels, layers=layers, seed=data.draw(st.integers(0, 2**16)))
    cuts = sorted(data.draw(st.sets(st.integers(1, layers - 1))) if layers > 1 else ())
    ranges = [range(a, b) for a, b in zip([0, *cuts], [*cuts, layers], strict=True)]
    parts = [gather(whole, layers=part) for part in ranges]
    for part, wanted in zip(parts, ranges, strict=True):
        assert verify(part, content_key=verify(whole).content_key).layers == wanted
    assert join_layers(data.draw(st.permutations(parts))) == whole
    level = data.draw(st.sampled_from(levels))
    one = data.draw(st.sampled_from(ranges))
    picked = Container.parse(gather(whole, level=level, layers=one))
    assert picked.header.levels == ((EXACT,) if level == EXACT else tuple(x for x in levels if x <= level))
    for segment in picked.header.segments:
        place = (segment.level, segment.layer, segment.kind)
        assert picked.segment(*place) == Container.parse(whole).segment(*place)


def test_a_selection_of_everything_is_one_read(container_bytes: Make) -> None:
    data = container_bytes()
    selection = select(verify(data))
    assert len(selection.ranges) == 1
    assert gather(data) == data


@pytest.mark.parametrize("wanted", [range(0), range(3, 3), range(4), range(-1, 2), range(3, 9), range(0, 3, 2)])
def test_layers_outside_the_container_or_with_gaps_are_refused(container_bytes: Make, wanted: range) -> None:
    with pytest.raises(MalformedContainer, match="the container has 0-2"):
        select(verify(container_bytes()), layers=wanted)


def test_parts_that_do_not_fit_together_are_refused(container_bytes: Make) -> None:
    whole = container_bytes()
    first, second, third = (gather(whole, layers=range(i, i + 1)) for i in range(3))
    assert verify(join_layers([first, second])).layers == range(2)
    with pytest.raises(MalformedContainer, match="missing"):
        join_layers([first, third])
    with pytest.raises(MalformedContainer, match="twice"):
        join_layers([first, first])
    with pytest.raises(MalformedContainer, match="missing"):
        join_layers([first, gather(whole, layers=range(1, 2), level=DRAFT)])
    with pytest.raises(MalformedContainer, match="not of one chunk"):
        join_layers([first, gather(container_bytes(content_key=b"k" * 32), layers=range(1, 2))])
    with pytest.raises(MalformedContainer, match="no containers"):
        join_layers([])
    damaged = bytearray(second)
    damaged[-1] ^= 1
    with pytest.raises(MalformedContainer):
        join_layers([first, damaged, third])


# The key, and what a writer refuses.


def test_a_container_of_another_chunk_is_a_key_mismatch(container_bytes: Make) -> None:
    data = container_bytes(content_key=b"a" * 32)
    verify(data, content_key=b"a" * 32)
    with pytest.raises(KeyMismatch, match="6161"):
        verify(data, content_key=b"b" * 32)


LAYOUT = Layout.uniform(layers=1, kv_heads=1, head_dim=2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tokens": 0}, EmptyChunk),
        ({"tokens": -1}, EmptyChunk),
        ({"tokens": limits.CHUNK_TOKENS_MAX + 1}, ChunkTooLong),
        ({"first_position": -1}, MalformedContainer),
        ({"first_position": limits.POSITION_MAX}, MalformedContainer),
        ({"content_key": b"k" * 31}, MalformedContainer),
        ({"content_key": b"k" * 33}, MalformedContainer),
        ({"profile_digest": b""}, MalformedContainer),
    ],
    ids=str,
)
def test_a_writer_refuses_what_a_reader_would(arguments: dict[str, int], error: type[KvloomError]) -> None:
    with pytest.raises(error):
        ContainerWriter(LAYOUT, **{"tokens": 1, "first_position": 0, **arguments})


def written(*places: tuple[Level, int, Kind | None], profile: bytes = b"p" * 32, block_layers: int = 1) -> bytes:
    writer = ContainerWriter(LAYOUT, tokens=1, first_position=0, block_layers=block_layers, profile_digest=profile)
    for place in places:
        writer.put(*place, b"x")
    return writer.commit()


BOTH = ((EXACT, 0, Kind.KEYS), (EXACT, 0, Kind.VALUES))


def test_an_exact_container_needs_no_profile_and_a_lossy_one_does() -> None:
    verify(written(*BOTH, profile=NO_PROFILE))
    with pytest.raises(MalformedContainer, match="no profile"):
        written((DRAFT, 0, None), profile=NO_PROFILE)
    verify(written((DRAFT, 0, None)))
    for block_layers in (0, 2):
        with pytest.raises(MalformedContainer, match=f"blocks of {block_layers} layers"):
            written((DRAFT, 0, None), block_layers=block_layers)


@pytest.mark.parametrize(
    "places",
    [
        (), BOTH[:1], BOTH[1:], ((EXACT, 1, Kind.KEYS), (EXACT, 1, Kind.VALUES)),
        ((EXACT, -1, Kind.KEYS), (EXACT, -1, Kind.VALUES)), ((ECONOMY, 0, None),), ((DRAFT, 1, None),),
        (*BOTH, (DRAFT, 0, Kind.KEYS)), (*BOTH, (DRAFT, 0, None), (DRAFT, 0, Kind.KEYS)),
        ((Level(7, "seven"), 0, None),),
    ],
    ids=str,
)  # fmt: skip
def test_a_writer_commits_only_whole_containers(places: tuple[tuple[Level, int, Kind | None], ...]) -> None:
    with pytest.raises(MalformedContainer):
        written(*places)


def test_a_segment_is_put_once() -> None:
    with pytest.raises(MalformedContainer, match="put twice"):
        written(BOTH[0], BOTH[0])


def test_a_writer_refuses_a_container_over_the_limit() -> None:
    writer = ContainerWriter(LAYOUT, tokens=1, first_position=0)
    payload = bytes(limits.CONTAINER_BYTES_MAX // 2)
    for place in BOTH:
        writer.put(*place, payload)
    with pytest.raises(BodyTooLarge, match=str(limits.CONTAINER_BYTES_MAX)):
        writer.commit()


def test_a_header_that_was_parsed_already_saves_no_check(container_bytes: Make) -> None:
    data = container_bytes()
    header = parse_header(data, declared_bytes=len(data))
    assert verify(data, content_key=header.content_key, header=header) is header
    with pytest.raises(KeyMismatch):
        verify(data, content_key=bytes(32), header=header)
    damaged = bytearray(data)
    damaged[-1] ^= 1
    with pytest.raises(MalformedContainer):
        verify(bytes(damaged), content_key=header.content_key, header=header)
