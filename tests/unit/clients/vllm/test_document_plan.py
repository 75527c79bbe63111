"""Which stored chunks a blended prompt takes, and where it puts them."""

import pytest
from blake3 import blake3

from kvloom.clients.sequence import SequenceChunks
from kvloom.clients.vllm.document_plan import DocumentPlanner
from kvloom.clients.vllm.lookup import ChunkLookup
from kvloom.clients.vllm.marking import mark_documents, read_marks
from kvloom.clients.vllm.plan import BlockTables
from kvloom.clients.vllm.settings import ConnectorSettings
from kvloom.kvstore.key import ModelIdentity

SIZE, BLOCK = 16, 8
IDENTITIES = [ModelIdentity(blake3(b"model").digest(), blake3(b"layout").digest())]
PREFIX, FIRST, SECOND, QUESTION = list(range(20)), list(range(100, 150)), list(range(200, 240)), [7, 8, 9]


class Stored:
    """Which keys are stored, and how often that was asked."""

    def __init__(self):
        self.keys = set()
        self.asked = 0

    def store(self, tokens):
        chunks = SequenceChunks(IDENTITIES, SIZE)
        found = [*chunks.full(tokens), *filter(None, [chunks.tail(tokens, len(tokens))])]
        self.keys |= {chunk.keys[0] for chunk in found}
        return found

    def exists(self, keys):
        self.asked += 1
        return [key in self.keys for key in keys]


@pytest.fixture
def stored():
    return Stored()


@pytest.fixture
def planner(stored):
    settings = ConnectorSettings(chunk_tokens=SIZE, load_tokens_min=10, blend=True)
    return DocumentPlanner(settings, ChunkLookup(stored.exists, 60.0))


@pytest.fixture
def begun(planner):
    prompt = mark_documents(PREFIX, [FIRST, SECOND], QUESTION)
    marks = read_marks(prompt.kv_transfer_params, prompt.cache_salt, len(prompt.token_ids))
    planner.begin("r", prompt.token_ids, marks, IDENTITIES)
    return prompt


def blend_of(planner, tokens):
    blocks = -(-tokens // BLOCK)
    planner.plan_load("r", tokens, BlockTables((list(range(1, blocks + 1)),), (BLOCK,)))
    (blend,) = planner.take()
    assert planner.take() == ()
    return blend


def test_every_token_of_the_documents_is_taken_once_from_where_it_was_computed(planner, stored, begun):
    for tokens in begun.to_store:
        stored.store(tokens)
    total = len(begun.token_ids)
    assert planner.matched_tokens("r", 0) == total - 1
    blend = blend_of(planner, total - 1)
    assert blend.token_ids == tuple(begun.token_ids)
    places = [place for item in blend.chunks for place in range(item.start, item.start + item.tokens - item.skip)]
    assert places == list(range(len(PREFIX) + len(FIRST) + len(SECOND)))
    own = {chunk.keys[0]: number for number in (0, 1) for chunk in stored.store(begun.to_store[number])}
    for item in blend.chunks:
        first = item.first_position + item.skip
        tokens = begun.to_store[0 if item.start < len(PREFIX) + len(FIRST) else own[item.key]]
        count = item.tokens - item.skip
        assert list(blend.token_ids[item.start : item.start + count]) == tokens[first : first + count]
    assert blend.target.tokens == total - 1
    assert sum(span.tokens for span in blend.target.spans[0]) == total - 1


def test_what_is_not_stored_is_left_out(planner, stored, begun):
    stored.store(begun.to_store[1])
    assert planner.matched_tokens("r", 0) == len(begun.token_ids) - 1
    blend = blend_of(planner, len(begun.token_ids) - 1)
    # Both prompts begin with one whole chunk of the prefix, which is everybody's.
    assert [item.start for item in blend.chunks] == [0, 70, 82, 98]


def test_nothing_stored_or_something_computed_already_is_computed(planner, stored, begun):
    assert planner.matched_tokens("r", 0) == 0
    planner.end("r")
    planner.begin("r", begun.token_ids, read_marks(begun.kv_transfer_params, begun.cache_salt, 99999), IDENTITIES)
    stored.store(begun.to_store[0])
    assert planner.matched_tokens("r", BLOCK) == 0
    assert planner.matched_tokens("r", 0) > 0


def test_a_request_that_failed_is_not_blended_again_and_is_asked_about_once(planner, stored, begun):
    stored.store(begun.to_store[0])
    assert planner.matched_tokens("r", 0) == planner.matched_tokens("r", 0) > 0
    assert stored.asked == 1
    planner.load_failed("r")
    planner.load_failed("another")
    assert planner.matched_tokens("r", 0) == 0
    assert planner.end("r")
    assert not planner.end("r")
    assert not planner.knows("r")


def test_another_models_documents_are_not_taken(planner, stored, begun):
    stored.store(begun.to_store[0])
    marks = read_marks(begun.kv_transfer_params, begun.cache_salt, len(begun.token_ids))
    other = [ModelIdentity(blake3(b"another").digest(), IDENTITIES[0].layout_digest)]
    planner.begin("other", begun.token_ids, marks, other)
    assert planner.matched_tokens("other", 0) == 0
