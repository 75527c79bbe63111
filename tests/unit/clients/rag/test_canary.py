"""Checks behind an answer's back: they find what full prefill would have said, wait while answers are made, and end."""

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checks run torch models")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from kvloom.blend.cache import KvCache  # noqa: E402
from kvloom.blend.gate import QualityTarget  # noqa: E402
from kvloom.clients.rag.canary import SLICE_TOKENS, WAITING_MAX, Canary  # noqa: E402
from kvloom.clients.transformers import model_layout, next_logits  # noqa: E402
from kvloom.errors import InvalidRequest, StorageUnavailable  # noqa: E402

pytestmark = pytest.mark.model

TARGET = QualityTarget(kl=0.05, agreement=0.5)
PROMPT = np.arange(2 * SLICE_TOKENS + 9, dtype=np.int64) % 61


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, max_position_embeddings=2048, initializer_range=0.3, **sizes)
    ).eval()


@pytest.fixture
def canary(model):
    made = []

    def make(**options):
        made.append(Canary(model, model_layout(model), **{"every": 1, **options}))
        return made[-1]

    yield make
    for item in made:
        item.close()


def answered(model, tokens: int = 4):
    """What full prefill says: the first tokens and their logits."""
    cache = KvCache(model_layout(model), len(PROMPT) + tokens)
    seen = [next_logits(model, cache, PROMPT)]
    answer = [int(seen[0].argmax())]
    while len(answer) < tokens:
        seen.append(next_logits(model, cache, np.array(answer[-1:])))
        answer.append(int(seen[-1].argmax()))
    return answer, seen


def test_a_true_answer_is_found_true_and_another_not(model, canary):
    told = []
    watcher = canary(report=told.append)
    answer, seen = answered(model)
    assert watcher.check(PROMPT, answer, seen, TARGET)
    watcher.wait()
    assert told[0].kl == pytest.approx(0.0, abs=1e-8)
    assert (told[0].agrees, told[0].kl_max, told[0].agreement_min) == (True, 0.05, 0.5)
    other = [(answer[0] + 1) % 64, *answer[1:]]
    assert watcher.check(PROMPT, other, [-item for item in seen], TARGET)
    watcher.wait()
    assert not told[1].agrees
    assert told[1].kl > 0.05
    found = watcher.metrics()
    assert (found.checked, found.agreed, found.failed, found.skipped, found.alert) == (2, 1, 0, 0, False)
    assert found.kl == pytest.approx(told[1].kl / 2, rel=1e-6)
    assert (found.recent_agreement, found.recent_kl) == (0.5, pytest.approx(found.kl))


def test_one_in_so_many_is_checked(model, canary):
    answer, seen = answered(model, 1)

    def checked(watcher, answers):
        found = []
        for _ in range(answers):
            found.append(watcher.check(PROMPT, answer, seen, TARGET))
            watcher.wait()
        return found

    assert checked(canary(every=3), 7) == [False, False, True, False, False, True, False]
    assert checked(canary(every=0), 3) == [False] * 3
    with pytest.raises(InvalidRequest, match="-1"):
        canary(every=-1)


def test_nothing_is_checked_while_an_answer_is_made_and_only_so_many_wait(model, canary):
    told = []
    watcher = canary(report=told.append)
    answer, seen = answered(model, 1)
    with watcher.answering():
        taken = [watcher.check(PROMPT, answer, seen, TARGET) for _ in range(WAITING_MAX + 4)]
        assert taken.count(False) >= 3  # the thread may have taken one from the queue
        assert not told
    watcher.wait()
    assert len(told) == taken.count(True)
    assert watcher.metrics().skipped == taken.count(False)


def test_a_daemon_that_cannot_be_told_is_no_reason_to_stop(model, canary):
    def refuse(_):
        raise StorageUnavailable("no")

    watcher = canary(report=refuse)
    answer, seen = answered(model, 1)
    for _ in range(2):
        assert watcher.check(PROMPT, answer, seen, TARGET)
        watcher.wait()
    assert (watcher.metrics().checked, watcher.metrics().failed) == (2, 2)


def test_closing_gives_up_a_check_under_way(model, canary):
    watcher = canary()
    answer, seen = answered(model, 1)
    with watcher.answering():
        watcher.check(PROMPT, answer, seen, TARGET)
        watcher.close()
        assert not any(item.name == "kvloom-canary" and item.is_alive() for item in threading.enumerate())
    assert watcher.metrics().checked == 0
    assert not watcher.check(PROMPT, answer, seen, TARGET)


def test_enough_bad_checks_raise_an_alert(model, canary):
    watcher = canary()
    answer, seen = answered(model, 1)
    for number in range(8):
        assert not watcher.metrics().alert, number
        watcher.check(PROMPT, answer, [-item for item in seen], TARGET)
        watcher.wait()
    assert watcher.metrics().alert
