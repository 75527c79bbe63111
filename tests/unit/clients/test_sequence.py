"""A request's chunks have the keys of the one key scheme, for every shard; every field that matters changes them."""

from collections.abc import Sequence

import pytest
from blake3 import blake3

from kvloom.clients.sequence import Feature, SequenceChunks
from kvloom.kvstore.key import ModelIdentity, chunk_refs

TOKENS = list(range(100, 175))


def identity(name: bytes = b"model", layout: bytes = b"layout", **fields: object) -> ModelIdentity:
    return ModelIdentity(blake3(name).digest(), blake3(layout).digest(), **fields)


def all_keys(chunks: SequenceChunks, tokens: Sequence[int] = TOKENS) -> list[tuple[bytes, ...]]:
    tail = chunks.tail(tokens, len(tokens))
    return [*(chunk.keys for chunk in chunks.full(tokens)), *(() if tail is None else (tail.keys,))]


def test_keys_are_those_of_every_other_client() -> None:
    shards = [identity(layout=b"rank 0"), identity(layout=b"rank 1")]
    chunks = SequenceChunks(shards, 32)
    for rank, shard in enumerate(shards):
        refs = chunk_refs(shard, TOKENS, chunk_tokens=32)
        assert [keys[rank] for keys in all_keys(chunks)] == [ref.key for ref in refs]
        tail = chunks.tail(TOKENS, len(TOKENS))
        assert tail is not None
        assert tail.parents is not None
        assert tail.parents[rank] == refs[-1].parent
    assert chunks.full(TOKENS)[0].parents is None


def test_growing_a_sequence_changes_no_chunk_that_was_there() -> None:
    grown, whole = SequenceChunks([identity()], 16), SequenceChunks([identity()], 16)
    for length in (5, 16, 40, 75):
        seen = grown.full(TOKENS[:length])
        assert seen == whole.full(TOKENS)[: length // 16]


def test_a_tail_of_every_length_is_what_a_prompt_of_that_length_would_save() -> None:
    chunks = SequenceChunks([identity()], 32)
    for tail in chunks.tails(TOKENS, 32, range(40, 60)):
        assert tail == SequenceChunks([identity()], 32).tail(TOKENS[: tail.stop], tail.stop)
        assert (tail.start, tail.tokens) == (32, tail.stop - 32)
    assert chunks.tail(TOKENS, 64) is None


@pytest.mark.parametrize(
    "other",
    [
        identity(name=b"other weights"),
        identity(layout=b"other layout"),
        identity(adapter="lora"),
        identity(salt=b"tenant"),
    ],
)
def test_no_chunk_is_shared_across_models_layouts_adapters_and_salts(other: ModelIdentity) -> None:
    ours, theirs = all_keys(SequenceChunks([identity()], 32)), all_keys(SequenceChunks([other], 32))
    assert not set(ours) & set(theirs)


def test_a_token_changes_its_chunk_and_all_after_it() -> None:
    ours = all_keys(SequenceChunks([identity()], 32))
    theirs = all_keys(SequenceChunks([identity()], 32), [*TOKENS[:40], 7, *TOKENS[41:]])
    assert [one == other for one, other in zip(ours, theirs, strict=True)] == [True, False, False]


def test_an_image_changes_the_chunks_from_the_one_that_holds_it_on() -> None:
    def with_image(digest: bytes) -> list[tuple[bytes, ...]]:
        feature = Feature(blake3(digest).digest(), 40, 70)
        return all_keys(SequenceChunks([identity()], 32, [feature]))

    ours, theirs, plain = with_image(b"cat"), with_image(b"dog"), all_keys(SequenceChunks([identity()], 32))
    assert [one == other for one, other in zip(ours, theirs, strict=True)] == [True, False, False]
    assert [one == other for one, other in zip(ours, plain, strict=True)] == [True, False, False]
