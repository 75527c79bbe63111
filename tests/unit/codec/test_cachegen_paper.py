"""CacheGen against its own paper (Liu et al. 2024, section 5.1): the three observations it is built on, and what its
levels do to size and quality. On synthetic KV that has the structure the paper saw, and on that of a real model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kvloom import codec
from kvloom.codec import LOSSY_LEVELS, KvSample, Layout
from kvloom.codec.cachegen import CacheGenProfile, calibrate_cachegen
from kvloom.codec.cachegen_profile import channels_of
from kvloom.codec.cachegen_quantise import GROUP_TOKENS, bin_of_layer
from kvloom.codec.layout import Kind

LAYERS, TOKENS = 9, 240


@dataclass(frozen=True)
class Subject:
    """KV of some text ``[layers][kv_heads, tokens, head_dim]`` and a profile learnt from other text."""

    layout: Layout
    profile: CacheGenProfile
    keys: Sequence[NDArray[np.float32]]
    values: Sequence[NDArray[np.float32]]

    def channels(self) -> list[NDArray[np.float32]]:
        """Each layer's keys and values as ``[tokens, width]``."""
        return [channels_of(heads) for heads in (*self.keys, *self.values)]


def synthetic() -> Subject:
    """Channels that differ in place and spread, tokens that drift: what the paper saw in Llama and Mistral."""
    rng = np.random.default_rng(11)
    layout = Layout.uniform(layers=LAYERS, kv_heads=2, head_dim=16)
    offset = rng.normal(scale=4, size=(2, LAYERS, 2, 1, 16))
    spread = np.exp(rng.normal(scale=0.7, size=offset.shape))

    def draw() -> NDArray[np.float32]:
        noise = rng.normal(size=(2, LAYERS, 2, TOKENS, 16))
        for token in range(1, TOKENS):
            noise[..., token, :] = 0.95 * noise[..., token - 1, :] + np.sqrt(1 - 0.95**2) * noise[..., token, :]
        return (offset + spread * noise).astype(np.float32)

    learnt, tested = draw(), draw()
    return Subject(layout, calibrate_cachegen([KvSample(*learnt)], layout), *tested)


@dataclass(frozen=True)
class Text:
    """A real model and one context, with the KL divergence of what follows from what followed the untouched KV."""

    subject: Subject
    divergence: Callable[[Sequence[NDArray], Sequence[NDArray]], float]


@pytest.fixture(scope="module")
def text(smollm2: Any) -> Text:
    import torch

    from kvloom.blend.cache import KvCache
    from kvloom.clients.transformers import extract, model_layout, prefill

    model, layout, following = smollm2.model, model_layout(smollm2.model), 16

    def read(topic: str, count: int) -> NDArray[np.int64]:
        return np.asarray(smollm2.tokenizer(topics[topic], verbose=False)["input_ids"][:count], dtype=np.int64)

    def kv(ids: NDArray[np.int64]) -> list[list[NDArray[np.float32]]]:
        return [[np.array(layer) for layer in item] for item in extract(prefill(model, ids), 0, len(ids))]

    learnt = [KvSample(*kv(read(topic, TOKENS))) for topic in ("debugger", "typesmapping")]
    ids = read("compound", TOKENS + following)
    keys, values = kv(ids[:TOKENS])

    @torch.inference_mode()
    def log_probabilities(keys: Sequence[NDArray], values: Sequence[NDArray]) -> torch.Tensor:
        cache = KvCache(layout, len(ids))
        for layer in range(len(layout.layers)):
            room = cache.layer_arrays(layer)
            room.keys[:, :TOKENS], room.values[:, :TOKENS] = keys[layer], values[layer]
        cache.truncate(TOKENS)
        rest = torch.from_numpy(ids[TOKENS:])[None]
        return torch.log_softmax(model(input_ids=rest, past_key_values=cache, use_cache=True).logits[0].double(), -1)

    expected = log_probabilities(keys, values)

    def divergence(keys: Sequence[NDArray], values: Sequence[NDArray]) -> float:
        found = log_probabilities(keys, values)
        return float((expected.exp() * (expected - found)).sum(-1).mean())

    return Text(Subject(layout, calibrate_cachegen(learnt, layout), keys, values), divergence)


@pytest.fixture(scope="module", params=["synthetic", pytest.param("smollm2", marks=pytest.mark.model)])
def subject(request: pytest.FixtureRequest) -> Subject:
    return synthetic() if request.param == "synthetic" else request.getfixturevalue("text").subject


def entropy(symbols: NDArray[np.int64]) -> float:
    """Bits per symbol of the histogram of all of them."""
    counts = np.unique(symbols, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def locality(layers: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By layer, variance over that of the differences from the anchor, and over that of those from the token before."""
    from_anchor, from_neighbour = [], []
    for channels in map(channels_of, layers):
        anchors = channels[np.arange(len(channels)) // GROUP_TOKENS * GROUP_TOKENS]
        rest = np.arange(len(channels)) % GROUP_TOKENS != 0
        from_anchor.append(channels.var() / (channels - anchors)[rest].var())
        from_neighbour.append(channels[1:].var() / np.diff(channels[1:], axis=0).var())
    return np.array(from_anchor), np.array(from_neighbour)


def test_tokens_resemble_their_neighbours(subject: Subject) -> None:
    """Insight 1: differences between neighbours vary 2.4 to 2.9 times less than the numbers do, in the paper."""
    from_anchor, from_neighbour = locality(subject.keys)
    assert np.median(from_neighbour) > 2.4
    assert np.median(from_anchor) > 1.5
    assert (from_anchor > 1).all()


@pytest.mark.model
def test_values_of_smollm2_do_not_resemble_their_neighbours(text: Text) -> None:
    """Where the paper's first observation ends: deltas of this model's values vary more than the values.

    CacheGen codes deltas of both all the same, and so do we in its name.
    """
    from_anchor, from_neighbour = locality(text.subject.values)
    assert np.median(from_anchor) < 1
    assert np.median(from_neighbour) < 1


def test_shallow_layers_get_finer_bins(subject: Subject) -> None:
    """Insight 2, as the codec heeds it: an error a bin may make grows by thirds of the depth."""
    layers = len(subject.layout.layers)
    sizes = [bin_of_layer(layer, layers) for layer in range(layers)]
    assert sizes == sorted(sizes)
    assert [sizes.count(size) for size in (0.5, 1.0, 1.5)] == [layers // 3] * 3
    decoded = codec.decode(
        codec.encode(subject.keys, subject.values, layout=subject.layout, profile=subject.profile),
        profile=subject.profile,
        level=LOSSY_LEVELS[0],
    )
    rest = np.arange(TOKENS) % GROUP_TOKENS != 0
    for layer, size in enumerate(sizes):
        for found, given in zip(decoded, (subject.keys, subject.values), strict=True):
            error = np.abs(np.asarray(found[layer]) - given[layer])[:, rest].max()
            assert error <= subject.profile.bin_scales[0] * size / 2 * (1 + 1e-4)


def test_channels_and_layers_tell_more_than_tokens(subject: Subject) -> None:
    """Insight 3: symbols grouped by channel and layer have less entropy than grouped by token, or not at all."""
    step = 1.0
    cells = [np.rint(channels / step).astype(np.int64) for channels in subject.channels()]
    by_channel = np.mean([entropy(layer[:, channel]) for layer in cells for channel in range(layer.shape[1])])
    by_layer = np.mean([entropy(layer) for layer in cells])
    tokens = np.concatenate(cells, axis=1)
    by_token = np.mean([entropy(tokens[token]) for token in range(0, TOKENS, 8)])
    ungrouped = entropy(np.concatenate([layer.ravel() for layer in cells]))
    assert by_channel < 0.8 * by_token
    assert by_channel < by_layer < ungrouped


def test_tables_by_channel_and_layer_pay_in_real_bytes(subject: Subject) -> None:
    """The same on the codec's own bytes: with one table for all channels of a layer it would need more."""

    def pooled(tables):
        def same(frequencies):
            mean = np.maximum(np.rint(frequencies.mean(axis=0, keepdims=True)), 1).astype(np.uint16)
            return np.repeat(mean, len(frequencies), axis=0)

        deltas = [replace(item, frequencies=same(item.frequencies)) for item in tables.deltas]
        return replace(tables, anchors=same(tables.anchors), deltas=tuple(deltas))

    profile = subject.profile
    coarse = CacheGenProfile(profile.layout, profile.bin_scales, tuple(pooled(item) for item in profile.tables))
    sizes = [
        len(codec.encode(subject.keys, subject.values, layout=subject.layout, profile=item, levels=[LOSSY_LEVELS[0]]))
        for item in (profile, coarse)
    ]
    assert sizes[0] < 0.98 * sizes[1]


def test_levels_cost_more_and_err_less(subject: Subject) -> None:
    """Along the levels size grows and error falls, all well below the 8 bits of plain quantisation."""
    blob = codec.encode(subject.keys, subject.values, layout=subject.layout, profile=subject.profile)
    bits = [codec.info(blob).bits_per_value[level.name] for level in LOSSY_LEVELS]
    errors = []
    for level in LOSSY_LEVELS:
        found = codec.decode(blob, profile=subject.profile, level=level)
        squares = [
            np.square(np.asarray(item) - given)
            for kind in Kind
            for item, given in zip(found[kind], (subject.keys, subject.values)[kind], strict=True)
        ]
        errors.append(float(np.mean([item.mean() for item in squares])))
    assert bits == sorted(set(bits))
    assert errors == sorted(set(errors), reverse=True)
    assert bits[0] < 8 / 2


@pytest.mark.model
def test_quality_rises_along_the_levels(text: Text) -> None:
    """The paper's own currency: what the model says next moves less and less from what it would have said."""
    subject = text.subject
    blob = codec.encode(subject.keys, subject.values, layout=subject.layout, profile=subject.profile)
    found = [text.divergence(*codec.decode(blob, profile=subject.profile, level=level)) for level in LOSSY_LEVELS]
    assert found == sorted(found, reverse=True)
    assert found[0] < 0.3
    assert found[-1] < found[0] / 4


@pytest.mark.model
def test_what_the_model_says_depends_most_on_shallow_layers(text: Text) -> None:
    """Insight 2 on the model itself: the same noise in the first third of the layers costs more than in the last."""
    subject = text.subject
    third = len(subject.layout.layers) // 3

    def disturbed(layers: range) -> float:
        rng = np.random.default_rng(1)
        keys, values = ([np.array(layer) for layer in item] for item in (subject.keys, subject.values))
        for layer in layers:
            for heads in (keys[layer], values[layer]):
                heads[:, 1:] += rng.uniform(-0.5, 0.5, size=heads[:, 1:].shape).astype(np.float32)
        return text.divergence(keys, values)

    assert disturbed(range(third)) > disturbed(range(2 * third, 3 * third))
