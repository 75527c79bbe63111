"""The real engine with our connector: the outputs of one without us, whatever the daemon does, and no prefill."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvloom import limits

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

# Answers are stored too; here prompts alone are, so that what is loaded is known.
SETTINGS: dict[str, Any] = {"save_answers": False}
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
def stored(engine: Any, prompts: list[list[int]]) -> Any:
    """The prompts, computed once and stored."""
    first = engine.ask(prompts)
    assert first.counted["drained"]
    assert first.counted["failed_saves"] == first.counted["dropped_saves"] == 0
    return first


def test_loaded_prompts_get_the_outputs_of_the_engines_own_prefix_cache(
    engine: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    assert len(prompts) >= 50
    stored.ties(reference)
    loaded = engine.ask(prompts)
    assert loaded.cached == whole(prompts)
    assert loaded.counted["failed_loads"] == 0
    loaded.ties(reference)


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
    unknown = fresh.ask(prompts[::8], salt="computed in chunks")
    unknown.ties(type(reference)(reference.answers[::8], {}))
    fresh.end()


def test_another_salt_shares_nothing_and_two_engines_share_one_daemon(
    engine: Any, start_engine: Callable[..., Any], stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    few = prompts[::6]
    expected = type(reference)(reference.answers[::6], {})
    salted = engine.ask(few, salt="somebody")
    assert set(salted.cached) == {0}
    salted.ties(expected)
    other = start_engine(SETTINGS, enable_prefix_caching=False)
    shared = other.ask(few, salt="somebody")
    assert shared.cached == whole(few)
    shared.ties(expected)
    assert set(other.ask(few[:1], salt="somebody else").cached) == {0}
    back = engine.ask(few, salt="somebody")
    assert back.cached == whole(few)
    other.end()


def test_another_block_size_takes_the_same_kv_and_another_dtype_none_of_it(
    start_engine: Callable[..., Any], stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    small = start_engine(SETTINGS, enable_prefix_caching=True, block_size=32)
    loaded = small.ask(prompts[::4])
    assert loaded.cached == whole(prompts[::4])
    loaded.ties(type(reference)(reference.answers[::4], {}))
    small.end()
    halved = start_engine(SETTINGS, enable_prefix_caching=False, dtype="bfloat16")
    computed = halved.ask(prompts[:4])
    assert set(computed.cached) == {0}
    again = halved.ask(prompts[:4])
    assert again.cached == whole(prompts[:4])
    again.ties(computed)
    halved.end()


def test_preempted_requests_end_with_the_outputs_of_an_engine_that_has_room(
    start_engine: Callable[..., Any], stored: Any, prompts: list[list[int]]
) -> None:
    few = prompts[::4]
    roomy = start_engine(None, enable_prefix_caching=True)
    expected = roomy.ask(few, max_tokens=96)
    roomy.end()
    room = {"block_size": 32, "num_gpu_blocks_override": 64, "max_model_len": 1024}
    narrow = start_engine({"level": "exact"}, enable_prefix_caching=True, **room)
    for _ in range(2):
        found = narrow.ask(few, max_tokens=96)
        found.ties(expected)
    assert found.counted["preemptions"] > 0
    assert found.counted["failed_loads"] == 0
    narrow.end()


def test_lossy_levels_are_smaller_and_never_taken_for_exact_ones(
    start_engine: Callable[..., Any], stored: Any, prompts: list[list[int]]
) -> None:
    lossy = start_engine({**SETTINGS, "level": "standard"}, enable_prefix_caching=False)
    computed = lossy.ask(prompts[:8])
    assert set(computed.cached) == {0}
    loaded = lossy.ask(prompts[:8])
    assert loaded.cached == whole(prompts[:8])
    assert loaded.counted["failed_loads"] == 0
    exact_bytes = stored.counted["saved_bytes"] / stored.counted["saved_tokens"]
    assert loaded.counted["saved_bytes"] / loaded.counted["saved_tokens"] < exact_bytes / 3
    lossy.end()


def test_a_daemon_killed_in_mid_run_and_started_again_changes_no_output(
    engine: Any, daemon: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    engine.ask(prompts, drain_seconds=0, after_first=daemon.kill).ties(reference)
    without = engine.ask(prompts[:8])
    assert set(without.cached) == {0}
    without.ties(type(reference)(reference.answers[:8], {}))
    daemon.start()
    back = engine.ask(prompts)
    assert back.cached == whole(prompts)
    back.ties(reference)


def test_a_frozen_daemon_costs_the_hits_and_no_output(
    start_engine: Callable[..., Any], daemon: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    hasty = start_engine(FROZEN, enable_prefix_caching=False)
    try:
        hasty.ask(prompts, drain_seconds=0, after_first=lambda: daemon.signal(signal.SIGSTOP)).ties(reference)
        silent = hasty.ask(prompts[:8], drain_seconds=0)
        assert set(silent.cached) == {0}
        silent.ties(type(reference)(reference.answers[:8], {}))
    finally:
        daemon.signal(signal.SIGCONT)
    for _ in range(100):
        if any(hasty.ask(prompts[:1]).cached):
            break
    else:
        pytest.fail("a daemon that goes on is not asked again")
    hasty.end()


def test_damaged_chunks_are_computed_and_replaced(
    engine: Any, daemon: Any, stored: Any, prompts: list[list[int]], reference: Any
) -> None:
    daemon.stop()
    assert daemon.damage() > len(prompts)
    daemon.start()
    damaged = engine.ask(prompts)
    damaged.ties(reference)
    assert damaged.cached != whole(prompts)
    for _ in range(3):
        healed = engine.ask(prompts)
        healed.ties(reference)
        if healed.cached == whole(prompts):
            break
    else:
        pytest.fail("what was damaged is not stored anew")
