"""Chunk identity: whatever could change the KV changes the key, and nothing else does."""

from dataclasses import fields, replace

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvloom import limits
from kvloom.errors import ChunkTooLong, EmptyChunk, InvalidKey, InvalidRequest, KvloomError, TooManyItems
from kvloom.kvstore.key import (
    ChunkRef,
    ContentKey,
    ContextMarker,
    ModelIdentity,
    chunk_refs,
    content_key,
    key_from_hex,
    owner_id,
    owner_of,
    storage_key,
    storage_keys,
)

PLAIN = ModelIdentity(fingerprint=b"f" * 32, layout_digest=b"l" * 32)
FULL = replace(PLAIN, adapter="läuft", salt=b"s\x00", multimodal=(b"m" * 32, b"n" * 32))
START, STANDALONE = ContextMarker.START, ContextMarker.STANDALONE
PARENT = ContentKey(b"p" * 32)
tokens_of = st.lists(st.integers(0, limits.VOCABULARY_MAX), min_size=1, max_size=40)
identities = st.builds(
    ModelIdentity,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.binary(max_size=8),
    st.lists(st.binary(min_size=32, max_size=32), max_size=3).map(tuple),
)
contexts = st.sampled_from(ContextMarker) | st.binary(min_size=32, max_size=32).map(ContentKey)


def rebuilt(identity: ModelIdentity, tokens: list[int], context: ContentKey | ContextMarker) -> bytes:
    """The key as docs/FORMAT.md describes it, written without the code under test."""
    parts = [b"kvloom chunk 1", identity.fingerprint, identity.layout_digest, identity.adapter.encode(), identity.salt]
    parts += [len(identity.multimodal).to_bytes(4, "little"), *identity.multimodal]
    parts += {START: [b"start"], STANDALONE: [b"standalone"]}.get(context) or [b"parent", context]  # type: ignore
    parts += [b"".join(token.to_bytes(4, "little") for token in tokens)]
    return blake3(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


# Stored data is found by these; a change of one of them loses every cache in the world.
GOLDEN = [
    (PLAIN, [0], START, "4d181b44107cbdd693c81415a99da92d95d7de03a3331e9cc0f41f3cbca01619"),
    (PLAIN, [0], STANDALONE, "4f2d0fa04cdb97db43e37b19cd706449d15e9c5f2a1522411b5ad8d49f7c7e26"),
    (PLAIN, [0], PARENT, "97143a955a8417ed9e8f85cdf3d5fb8f442e5d4eb44832c08100fdc2dfab558d"),
    (PLAIN, [1, 2, limits.VOCABULARY_MAX], START, "b6852c9d038e8af61bb135ff4b9c418ef4720b744d7a7c0dc8442ba9eb845226"),
    (FULL, list(range(256)), START, "f87888b4acaf17e9264f7eab3037dae78a2256aee577109fb76c576abe4f2c0e"),
    (FULL, list(range(256)), PARENT, "56e9d79c7fffec76049b44c2c1de1850b806ed0955a8f07ab00327849105b69d"),
]


@pytest.mark.parametrize(("identity", "tokens", "context", "digest"), GOLDEN)
def test_keys_are_frozen(
    identity: ModelIdentity, tokens: list[int], context: ContentKey | ContextMarker, digest: str
) -> None:
    assert content_key(identity, tokens, context).hex() == digest


def test_storage_keys_are_frozen() -> None:
    assert storage_key(b"n" * 32, PARENT).hex() == "5f49e7ef108bfc73d5e25dde15199a27927c1c7e97e489edd9c6180157d3629f"


def test_many_storage_keys_are_those_of_each() -> None:
    keys = [ContentKey(bytes((number,)) * 32) for number in range(5)]
    assert storage_keys(b"n" * 32, keys) == [storage_key(b"n" * 32, key) for key in keys]
    assert storage_keys(b"n" * 32, []) == []


@given(identities, tokens_of, contexts)
def test_a_key_is_blake3_over_length_prefixed_fields(
    identity: ModelIdentity, tokens: list[int], context: ContentKey | ContextMarker
) -> None:
    assert content_key(identity, tokens, context) == rebuilt(identity, tokens, context)


def test_every_field_changes_the_key() -> None:
    changes = {
        "fingerprint": b"F" * 32,
        "layout_digest": b"L" * 32,
        "adapter": "other",
        "salt": b"other",
        "multimodal": (b"n" * 32, b"m" * 32),
    }
    assert set(changes) == {field.name for field in fields(ModelIdentity)}
    tokens = [1, 2, 3]
    keys = [content_key(FULL, tokens, START)]
    keys += [content_key(replace(FULL, **{name: value}), tokens, START) for name, value in changes.items()]
    keys += [content_key(FULL, other, START) for other in ([1, 2], [1, 2, 3, 0], [3, 2, 1], [1, 2, 4])]
    keys += [content_key(FULL, tokens, context) for context in (STANDALONE, PARENT, ContentKey(b"q" * 32))]
    assert len(set(keys)) == len(keys)


@given(st.tuples(identities, tokens_of, contexts), st.tuples(identities, tokens_of, contexts))
def test_two_chunks_share_a_key_only_if_they_are_one(one: tuple, other: tuple) -> None:
    assert (content_key(*one) == content_key(*other)) == (one == other)


def test_bytes_cannot_move_from_one_field_to_the_next() -> None:
    one = replace(PLAIN, adapter="ab", salt=b"c")
    other = replace(PLAIN, adapter="a", salt=b"bc")
    digests = b"m" * 32
    assert content_key(one, [1], START) != content_key(other, [1], START)
    assert content_key(replace(PLAIN, salt=digests), [1], START) != content_key(
        replace(PLAIN, multimodal=(digests,)), [1], START
    )
    assert content_key(PLAIN, [1], ContentKey(b"start")) != content_key(PLAIN, [1], START)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
def test_the_type_that_holds_the_tokens_does_not_matter(tokens: list[int]) -> None:
    expected = content_key(PLAIN, tokens, START)
    for dtype in ("int32", "int64", "uint32", "uint64", ">i4", ">u8"):
        assert content_key(PLAIN, np.array(tokens, dtype=dtype), START) == expected
    strided = np.repeat(np.array(tokens), 2)[::2]
    assert content_key(PLAIN, strided, START) == expected
    assert content_key(PLAIN, tuple(tokens), START) == expected


@pytest.mark.parametrize(
    "tokens",
    [
        [-1], [2**32], [2**64], [-(2**70)], [1.0], ["1"], [None], [True], [[1, 2]], [[1], [2, 3]], [0, -1, 5],
        np.array([1.5]), np.array([[1]]), np.array([-1], np.int32), np.array([2**40]), [2**63, -1], ["a" * 10**4],
    ],
    ids=lambda tokens: repr(tokens)[:30],
)  # fmt: skip
def test_what_is_no_token_list_is_an_invalid_request_in_one_short_line(tokens: list[int]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        content_key(PLAIN, tokens, START)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_a_chunk_has_a_token_and_not_too_many() -> None:
    for empty in ([], (), np.array([], dtype=np.int64)):
        with pytest.raises(EmptyChunk):
            content_key(PLAIN, empty, START)
    content_key(PLAIN, [7] * limits.CHUNK_TOKENS_MAX, START)
    with pytest.raises(ChunkTooLong, match=str(limits.CHUNK_TOKENS_MAX)):
        content_key(PLAIN, [7] * (limits.CHUNK_TOKENS_MAX + 1), START)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"fingerprint": b""}, InvalidRequest),
        ({"fingerprint": b"f" * 33}, InvalidRequest),
        ({"layout_digest": b"l" * 31}, InvalidRequest),
        ({"multimodal": (b"m" * 31,)}, InvalidRequest),
        ({"multimodal": (b"m" * 32,) * (limits.MULTIMODAL_DIGESTS_MAX + 1)}, TooManyItems),
        ({"adapter": "é" * (limits.ADAPTER_BYTES_MAX // 2 + 1)}, TooManyItems),
        ({"adapter": "\ud800"}, InvalidRequest),
        ({"salt": b"s" * (limits.SALT_BYTES_MAX + 1)}, TooManyItems),
    ],
    ids=lambda item: str(item)[:30],
)
def test_an_identity_out_of_bounds_is_refused(change: dict[str, object], error: type[KvloomError]) -> None:
    with pytest.raises(error):
        replace(PLAIN, **change)


# Cutting a sequence into chunks.


@given(st.integers(0, 200), st.integers(1, 50), contexts)
def test_a_sequence_is_full_chunks_and_at_most_one_tail(
    length: int, chunk_tokens: int, context: ContentKey | ContextMarker
) -> None:
    tokens = np.arange(length)
    refs = chunk_refs(PLAIN, tokens, chunk_tokens=chunk_tokens, context=context)
    assert [ref.start for ref in refs] == list(range(0, length, chunk_tokens))
    assert [ref.stop for ref in refs[:-1]] == [ref.start for ref in refs[1:]]
    assert all(ref.tokens == chunk_tokens for ref in refs[:-1])
    if refs:
        assert refs[-1].stop == length
        assert 1 <= refs[-1].tokens <= chunk_tokens
    for ref in refs:
        assert ref.key == content_key(PLAIN, tokens[ref.start : ref.stop], context)
        context = ref.key


@given(st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(0, 9), max_size=60), st.integers(1, 9))
def test_sequences_share_exactly_the_chunks_of_their_common_prefix(
    one: list[int], other: list[int], chunk_tokens: int
) -> None:
    ours, theirs = (chunk_refs(PLAIN, tokens, chunk_tokens=chunk_tokens) for tokens in (one, other))
    for mine, yours in zip(ours, theirs, strict=False):
        assert (mine == yours) == (one[: mine.stop] == other[: yours.stop])
    assert len({ref.key for ref in [*ours, *theirs]}) == len({(tuple(one[: r.stop])) for r in ours} | {
        tuple(other[: r.stop]) for r in theirs
    })  # fmt: skip


def test_refs_say_where_they_lie() -> None:
    first, tail = chunk_refs(PLAIN, [5, 6, 7], chunk_tokens=2)
    assert (first.start, first.stop, tail.start, tail.stop) == (0, 2, 2, 3)
    assert first == ChunkRef(content_key(PLAIN, [5, 6], START), 0, 2)
    assert tail == ChunkRef(content_key(PLAIN, [7], first.key), 2, 3, first.key)
    assert chunk_refs(PLAIN, [7], context=first.key)[0].parent == first.key
    assert len(chunk_refs(PLAIN, range(limits.CHUNK_TOKENS_DEFAULT + 1))) == 2


@pytest.mark.parametrize("chunk_tokens", [0, -1, limits.CHUNK_TOKENS_MAX + 1])
def test_a_chunk_length_out_of_bounds_is_refused(chunk_tokens: int) -> None:
    with pytest.raises(ChunkTooLong, match=str(limits.CHUNK_TOKENS_MAX)):
        chunk_refs(PLAIN, [1], chunk_tokens=chunk_tokens)


def test_a_sequence_over_the_limit_is_refused_before_it_is_hashed() -> None:
    too_many = np.zeros(limits.PREFIX_TOKENS_MAX + 1, dtype=np.int64)
    with pytest.raises(TooManyItems, match=str(limits.PREFIX_TOKENS_MAX)):
        chunk_refs(PLAIN, too_many)


# Namespaces and the text form.


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_namespaces_keep_one_chunk_in_different_places(one: bytes, other: bytes, key: bytes) -> None:
    ours, theirs = storage_key(one, ContentKey(key)), storage_key(other, ContentKey(key))
    assert (ours == theirs) == (one == other)
    assert ours != key
    assert (owner_of(ours), owner_of(theirs)) == (owner_id(one), owner_id(other))
    assert (owner_id(one) == owner_id(other)) == (one == other)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_survives_a_url(key: bytes) -> None:
    assert key_from_hex(key.hex()) == key


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, " " + "0" * 63, "0" * 63 + "\n", "٠" * 64, "0x" + "0" * 62]
)
def test_any_other_text_is_no_key(text: str) -> None:
    with pytest.raises(InvalidKey):
        key_from_hex(text)
