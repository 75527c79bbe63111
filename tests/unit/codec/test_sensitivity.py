"""What gradients tell: which tokens weigh how much, whatever their distance, and which directions count."""

import numpy as np
import pytest

from kvloom.codec import sensitivity
from kvloom.codec.sensitivity import ChannelRange, SensitivityLearner

WIDTH, TOKENS, FOLLOWING = 12, 600, 64
TENSORS = [ChannelRange(0, 5), ChannelRange(5, WIDTH)]


def planted(seed: int, slope: np.ndarray, loud: int):
    """A context whose tokens' gradients have energies ``exp(channels @ slope)``, more so near the end."""
    rng = np.random.default_rng(seed)
    channels = rng.normal(size=(TOKENS, WIDTH)).astype(np.float32)
    nearness = 1.0 / np.sqrt(TOKENS - np.arange(TOKENS))
    directions = rng.normal(size=(2, TOKENS, WIDTH))
    directions[:, :, loud] *= 10
    size = np.exp(0.5 * channels @ slope) * nearness
    return channels, [(item * size[:, None]).astype(np.float32) for item in directions]


@pytest.fixture(params=[10**9, 400_000], ids=["held to the end", "absorbed after five"])
def learnt(request, monkeypatch):
    monkeypatch.setattr(sensitivity, "HELD_BYTES", request.param)
    slope = np.zeros(WIDTH)
    slope[2], slope[7] = 3.0, -2.0
    learner = SensitivityLearner(TENSORS)
    for seed in range(20):
        learner.add(*planted(seed, slope, loud=8), following=FOLLOWING)
    return slope, learner.learn()


def test_weights_of_unseen_tokens_are_predicted_and_distance_is_left_out(learnt):
    slope, found = learnt
    channels, _ = planted(99, slope, loud=8)
    wanted = channels @ slope
    assert np.corrcoef(found.log_weights(channels), wanted)[0, 1] > 0.95
    again = found.log_weights(channels[::-1])[::-1]
    assert np.allclose(again, found.log_weights(channels))


def test_directions_that_matter_stand_out_in_their_tensor_only(learnt):
    _, found = learnt
    quiet, loud = found.metrics
    assert [item.shape for item in found.metrics] == [(5, 5), (7, 7)]
    diagonal = np.diagonal(loud)
    assert np.argmax(diagonal) == 8 - 5
    assert diagonal[3] / np.median(diagonal) == pytest.approx(100, rel=0.5)
    assert np.diagonal(quiet).max() < 2 * np.diagonal(quiet).min()


def test_no_gradients_tell_nothing():
    assert SensitivityLearner(TENSORS).learn() is None


def test_the_reach_grows_with_the_context_and_falls_with_what_follows():
    slope = np.zeros(WIDTH)
    reaches = []
    for following in (FOLLOWING, 4 * FOLLOWING):
        learner = SensitivityLearner(TENSORS)
        learner.add(*planted(3, slope, loud=0), following=following)
        reaches.append(learner.learn().reach)
    assert reaches[0] == pytest.approx(4 * reaches[1])


def test_tokens_that_a_window_has_left_behind_tell_nothing():
    slope = np.zeros(WIDTH)
    slope[2] = 3.0
    seen, windowed = SensitivityLearner(TENSORS), SensitivityLearner(TENSORS)
    for seed in range(8):
        channels, gradients = planted(seed, slope, loud=8)
        for item in gradients:
            item[:200] = 0
        windowed.add(channels, gradients, following=FOLLOWING)
        seen.add(channels[200:], [item[200:] for item in gradients], following=FOLLOWING)
    found, wanted = windowed.learn(), seen.learn()
    assert np.array_equal(found.slope, wanted.slope)
    assert found.reach == wanted.reach
    for a, b in zip(found.metrics, wanted.metrics, strict=True):
        assert np.array_equal(a, b)
    nothing = SensitivityLearner(TENSORS)
    nothing.add(channels, [np.zeros_like(channels)], following=FOLLOWING)
    assert nothing.learn() is None
