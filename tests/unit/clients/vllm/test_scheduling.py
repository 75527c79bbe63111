"""The scheduler's plans: what is stored is loaded and not saved, what is computed is saved once, what fails anew."""

from collections.abc import Sequence

from blake3 import blake3

from kvloom import limits
from kvloom.clients.sequence import SequenceChunks, ShardedChunk
from kvloom.clients.vllm.advice import LOAD_ALL, Advice
from kvloom.clients.vllm.lookup import ChunkLookup
from kvloom.clients.vllm.plan import BlockTables, RequestLoad, StepPlan, StepPrefill
from kvloom.clients.vllm.scheduling import RequestPlanner
from kvloom.clients.vllm.settings import ConnectorSettings
from kvloom.kvstore.key import ContentKey, ModelIdentity

CHUNK, BLOCK = 64, 16
IDENTITY = ModelIdentity(blake3(b"model").digest(), blake3(b"layout").digest())
PROMPT = list(range(1000, 1150))
TABLE = BlockTables((list(range(50, 80)),), (BLOCK,))


def sequence() -> SequenceChunks:
    return SequenceChunks([IDENTITY], CHUNK)


def stops(chunks: Sequence[object]) -> list[tuple[int, int]]:
    return [(chunk.start, chunk.start + chunk.tokens) for chunk in chunks]


def loaded(load: RequestLoad) -> int:
    return sum(chunk.loaded_tokens for chunk in load.chunks)


class Engine:
    """A planner, the keys a daemon has, and a clock."""

    def __init__(self, *, keep_last: bool = False, **settings: object) -> None:
        self.asked: list[tuple[list[tuple[int, int]], int]] = []
        self.advice = LOAD_ALL
        self.stored: set[ContentKey] = set()
        self.lookups = 0
        self.now = 0.0
        lookup = ChunkLookup(self.exists, 0.05, clock=lambda: self.now)
        chosen = ConnectorSettings(**{"chunk_tokens": CHUNK, "load_tokens_min": 1, **settings})
        self.planner = RequestPlanner(chosen, lookup, advise=self.advise, keep_last=keep_last, clock=lambda: self.now)

    def advise(self, chunks: Sequence[ShardedChunk], prompt_tokens: int) -> Advice:
        self.asked.append((stops(chunks), prompt_tokens))
        return self.advice

    def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        self.lookups += 1
        return [key in self.stored for key in keys]

    def store(self, *chunks: ShardedChunk | None) -> None:
        self.stored |= {key for chunk in chunks if chunk is not None for key in chunk.keys}

    def begin(self, name: str = "a", tokens: Sequence[int] = PROMPT, computed: int = 0) -> int:
        self.planner.begin(name, sequence(), len(tokens))
        return self.planner.matched_tokens(name, tokens, computed)

    def step(self, computed: int, name: str = "a", tokens: Sequence[int] = PROMPT) -> StepPlan:
        self.planner.step(name, tokens, computed, lambda: TABLE)
        return self.planner.take()


def test_a_new_prompt_is_saved_chunk_by_chunk_as_it_is_computed_and_its_tail_last() -> None:
    engine = Engine()
    assert engine.begin() == 0
    assert stops(engine.step(40).saves) == []
    assert stops(engine.step(100).saves) == [(0, 64)]
    plan = engine.step(150)
    assert stops(plan.saves) == [(64, 128), (128, 150)]
    assert [(span.block, span.offset, span.tokens) for span in plan.saves[1].spans[0]] == [(58, 0, 16), (59, 0, 6)]
    assert engine.step(151, tokens=[*PROMPT, 5]).saves == ()


def test_what_is_stored_is_loaded_with_its_tail_and_not_saved() -> None:
    engine = Engine()
    engine.store(*sequence().full(PROMPT), sequence().tail(PROMPT, 150))
    assert engine.begin() == 150
    engine.planner.plan_load("a", 150, TABLE)
    plan = engine.step(150)
    assert stops(plan.loads[0].chunks) == [(0, 64), (64, 128), (128, 150)]
    assert loaded(plan.loads[0]) == 150
    assert plan.saves == ()


def test_a_shorter_tail_of_another_prompt_is_found() -> None:
    engine = Engine()
    engine.store(*sequence().full(PROMPT), sequence().tail(PROMPT, 137), sequence().tail(PROMPT, 141))
    assert engine.begin() == 141
    assert stops(engine.step(150).saves) == [(128, 150)]


def test_a_gap_ends_what_can_be_loaded_and_only_the_gap_is_saved() -> None:
    engine = Engine()
    first, second = sequence().full(PROMPT)
    engine.store(second, sequence().tail(PROMPT, 150))
    assert engine.begin() == 0
    assert stops(engine.step(150).saves)[0] == (first.start, first.stop)
    assert (second.start, second.stop) not in stops(engine.planner.take().saves)


def test_tokens_the_engine_has_are_not_written_to() -> None:
    engine = Engine()
    engine.store(*sequence().full(PROMPT))
    assert engine.begin(computed=96) == 32
    engine.planner.plan_load("a", 32, TABLE)
    load = engine.planner.take().loads[0]
    assert stops(load.chunks) == [(64, 128)]
    assert [(span.block, span.at, span.tokens) for span in load.chunks[0].spans[0]] == [(56, 32, 16), (57, 48, 16)]


def test_the_engine_may_take_less_than_was_offered() -> None:
    engine = Engine()
    engine.store(*sequence().full(PROMPT))
    assert engine.begin() == 128
    engine.planner.plan_load("a", 80, TABLE)
    assert loaded(engine.planner.take().loads[0]) == 80


def test_a_hit_too_short_to_be_worth_it_is_computed() -> None:
    engine = Engine()
    engine.planner = RequestPlanner(
        ConnectorSettings(chunk_tokens=CHUNK), ChunkLookup(engine.exists, 0.05), clock=lambda: 0.0
    )
    engine.store(*sequence().full(PROMPT))
    assert engine.begin(computed=128 - limits.ENGINE_LOAD_TOKENS_MIN + 1) == 0


def test_what_failed_to_load_is_not_tried_again_and_is_saved_anew() -> None:
    engine = Engine()
    engine.store(*sequence().full(PROMPT), sequence().tail(PROMPT, 150))
    engine.begin()
    engine.planner.plan_load("a", 150, TABLE)
    engine.planner.take()
    engine.planner.load_failed("a", 64, silent=False)
    assert engine.planner.matched_tokens("a", PROMPT, 0) == 0
    assert stops(engine.step(150).saves) == [(64, 128), (128, 150)]


def test_a_request_that_waits_for_room_is_not_looked_up_each_time() -> None:
    engine = Engine()
    engine.store(*sequence().full(PROMPT))
    engine.begin()
    asked = engine.lookups
    assert engine.planner.matched_tokens("a", PROMPT, 0) == 128
    assert engine.lookups == asked
    engine.now += limits.ENGINE_LOOKUP_REUSE_SECONDS
    engine.stored.clear()
    assert engine.planner.matched_tokens("a", PROMPT, 0) == 0


def test_after_silence_nothing_is_looked_up_and_everything_is_still_computed_and_saved() -> None:
    engine = Engine()
    engine.begin("a")
    engine.planner.load_failed("a", 0, silent=True)
    engine.store(*sequence().full(PROMPT))
    assert engine.begin("b") == 0
    assert stops(engine.step(150, "b").saves) == [(0, 64), (64, 128), (128, 150)]


def test_two_requests_with_one_prefix_save_it_once() -> None:
    engine = Engine()
    other = [*PROMPT[:128], *range(5000, 5030)]
    engine.begin("a")
    engine.begin("b", other)
    engine.planner.step("a", PROMPT, 150, lambda: TABLE)
    engine.planner.step("b", other, 158, lambda: TABLE)
    assert stops(engine.planner.take().saves) == [(0, 64), (64, 128), (128, 150), (128, 158)]


def test_a_preempted_request_is_looked_up_with_what_it_had_made() -> None:
    engine = Engine()
    made = [*PROMPT, *range(60)]
    engine.begin()
    engine.step(150)
    engine.store(*sequence().full(made), sequence().tail(made, 205))
    assert engine.planner.matched_tokens("a", made[:206], 0) == 205


def test_an_answer_is_saved_when_the_request_ends_and_its_blocks_are_kept_until_then() -> None:
    engine = Engine()
    made = [*PROMPT, *range(20)]
    engine.begin()
    engine.step(150)
    assert engine.planner.finish("a", made, 169, TABLE)
    plan = engine.planner.take()
    assert stops(plan.saves) == [(128, 169)]
    assert plan.released == ("a",)
    assert not engine.planner.knows("a")


def test_full_chunks_of_an_answer_are_saved_as_their_tokens_are_known() -> None:
    engine = Engine()
    made = [*PROMPT, *range(100)]
    engine.begin()
    engine.step(150)
    assert engine.step(193, tokens=made[:191]).saves == ()
    assert stops(engine.step(194, tokens=made[:192]).saves) == [(128, 192)]


def test_what_was_saved_and_is_lost_is_saved_anew_once_it_should_long_have_come() -> None:
    engine = Engine()
    everything = [(0, 64), (64, 128), (128, 150)]
    engine.begin("a")
    assert stops(engine.step(150, name="a").saves) == everything
    engine.begin("b")
    assert engine.step(150, name="b").saves == ()
    engine.store(*sequence().full(PROMPT)[:1])
    engine.now = limits.ENGINE_SAVE_SECONDS_MAX + 1
    engine.begin("d")
    assert stops(engine.step(150, name="d").saves) == [(64, 128)]
    engine.store(*sequence().full(PROMPT))
    engine.begin("e")
    assert stops(engine.step(150, name="e").saves) == [(128, 150)]


def test_nothing_is_saved_of_a_request_that_failed_or_where_saving_is_off() -> None:
    engine = Engine()
    engine.begin()
    assert not engine.planner.finish("a", [*PROMPT, *range(20)], 0, TABLE)
    assert not engine.planner.finish("unknown", PROMPT, 150, TABLE)
    quiet = Engine(save=False)
    quiet.begin()
    assert quiet.step(150).saves == ()
    assert not quiet.planner.finish("a", [*PROMPT, *range(20)], 169, TABLE)
    deaf = Engine(load=False)
    deaf.store(*sequence().full(PROMPT))
    assert deaf.begin() == 0
    assert stops(deaf.step(150).saves) == [(128, 150)]
    whole = Engine(save_tails=False, save_answers=False)
    whole.begin()
    assert stops(whole.step(150).saves) == [(0, 64), (64, 128)]
    assert not whole.planner.finish("a", [*PROMPT, *range(20)], 169, TABLE)


def test_what_is_faster_computed_is_not_loaded_and_not_saved_again() -> None:
    engine = Engine()
    engine.store(*sequence().full(PROMPT), sequence().tail(PROMPT, 150))
    engine.advice = Advice(1, ("ssd",), 0.75, b"plan")
    assert engine.begin() == 64
    assert engine.asked == [([(0, 64), (64, 128), (128, 150)], 150)]
    engine.planner.plan_load("a", 64, TABLE)
    plan = engine.step(150)
    (load,) = plan.loads
    assert [(chunk.start, chunk.link) for chunk in load.chunks] == [(0, "ssd")]
    assert (load.seconds_max, load.awaited) == (0.75, False)
    assert plan.saves == ()
    assert engine.planner.plan_of("a") == b"plan"


def test_advice_is_about_what_the_engine_has_not_and_links_stay_with_their_chunks() -> None:
    engine = Engine(load_seconds_max=0.5)
    engine.store(*sequence().full(PROMPT), sequence().tail(PROMPT, 150))
    engine.advice = Advice(1, ("ssd",), 0.75)
    assert engine.begin(computed=64) == 64
    assert engine.asked == [([(64, 128), (128, 150)], 150)]
    engine.planner.plan_load("a", 64, TABLE)
    (load,) = engine.planner.take().loads
    assert [(chunk.start, chunk.link) for chunk in load.chunks] == [(64, "ssd")]
    assert load.seconds_max == 0.5


def test_nobody_is_asked_about_what_is_not_there_or_too_short() -> None:
    engine = Engine(load_tokens_min=100)
    assert engine.begin("a") == 0
    engine.store(*sequence().full(PROMPT))
    assert engine.begin("b", computed=64) == 0
    assert engine.asked == []


def test_what_another_engine_computes_is_awaited_whole_and_not_looked_up() -> None:
    engine = Engine(await_seconds_max=7.0)
    engine.planner.begin("a", sequence(), len(PROMPT), awaited=True)
    assert engine.planner.matched_tokens("a", PROMPT, 0) == 150
    assert (engine.lookups, engine.asked) == (0, [])
    engine.planner.plan_load("a", 150, TABLE)
    plan = engine.step(150)
    (load,) = plan.loads
    assert (load.awaited, load.seconds_max, loaded(load)) == (True, 7.0, 150)
    assert plan.saves == ()
    engine.planner.load_failed("a", 64, silent=False)
    assert stops(engine.step(150).saves) == [(64, 128), (128, 150)]


def test_a_step_that_reads_what_it_loads_computes_the_last_token_itself() -> None:
    engine = Engine(keep_last=True, layers_per_part=1, load_by_layer=True)
    engine.store(*sequence().full(PROMPT), sequence().tail(PROMPT, 150))
    assert engine.begin() == 149
    engine.planner.plan_load("a", 149, TABLE)
    (load,) = engine.planner.take().loads
    assert (load.by_layer, loaded(load)) == (True, 149)


def test_a_step_that_waits_for_what_it_loads_says_nothing_of_computing() -> None:
    prefill = StepPrefill(1, 149, 1)
    for by_layer in (True, False):
        engine = Engine(keep_last=True, layers_per_part=1, load_by_layer=by_layer)
        engine.store(*sequence().full(PROMPT), sequence().tail(PROMPT, 150))
        engine.planner.plan_load("a", engine.begin(), TABLE)
        assert engine.planner.take(prefill).prefill == (None if by_layer else prefill)
        assert engine.planner.take(prefill).prefill == prefill


def test_layers_with_a_short_window_take_only_what_they_have_blocks_for() -> None:
    windowed = BlockTables((list(range(50, 80)), [0] * 6 + list(range(90, 100))), (BLOCK, BLOCK))
    engine = Engine()
    engine.store(*sequence().full(PROMPT), sequence().tail(PROMPT, 150))
    engine.begin()
    engine.planner.plan_load("a", 150, windowed)
    (load,) = engine.planner.take().loads
    assert [len(chunk.spans[1]) for chunk in load.chunks] == [0, 2, 2]
    assert loaded(load) == 150
    assert 0 not in {block for chunk in load.chunks for block in chunk.blocks}
    fresh = Engine()
    fresh.begin()
    fresh.planner.step("a", PROMPT, 150, lambda: windowed)
    assert stops(fresh.planner.take().saves) == [(128, 150)]
