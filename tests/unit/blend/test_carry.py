"""Carrying over: tokens that were not computed follow those that were, as far as these say how."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="caches hold torch tensors")

from kvloom.blend import carry  # noqa: E402
from kvloom.blend.cache import KvCache, Replaced  # noqa: E402
from kvloom.blend.carry import CarryOver  # noqa: E402
from kvloom.codec.layout import KvDtype, Layout, Rope  # noqa: E402
from kvloom.codec.rope import rotate  # noqa: E402

SINKS = 4
PREFIX, LENGTHS, HEADS, DIM = 3, (70, 80), 2, 8
TOTAL = PREFIX + sum(LENGTHS) + 4
ROPES = [
    Rope((1.0, 0.1, 0.01, 0.001)),
    Rope((0.7, 0.05), interleaved=True),
    Rope((0.0,)),
    Rope((0.7, 0.05), first_dim=4),
]


class Prompt:
    """Stored KV of two chunks in a cache, what it should be, and every third token of it computed."""

    def __init__(self, rope, change, *, dtype=KvDtype.FLOAT32, every=3):
        self.layout = Layout.uniform(layers=1, kv_heads=HEADS, head_dim=DIM, rope=rope, dtype=dtype)
        self.cache = KvCache(self.layout, TOTAL)
        generator = np.random.default_rng(4)
        self.chunk = np.concatenate([[-1] * PREFIX, *([n] * length for n, length in enumerate(LENGTHS)), [-1] * 4])
        offset = np.concatenate([[-1] * PREFIX, *(np.arange(length) for length in LENGTHS), [-1] * 4])
        arrays = self.cache.layer_arrays(0)
        places = np.arange(TOTAL)
        self.expected, self.stored = {}, {}
        for name, room in (("keys", arrays.keys), ("values", arrays.values)):
            plain = generator.standard_normal((HEADS, TOTAL, DIM)).astype(np.float32)
            right = plain + np.where(self.chunk >= 0, 1.0, 0.0)[None, :, None] * change(plain, self.chunk)
            turned = [
                rotate(item.astype(np.float32), rope, places) if name == "keys" and rope else item
                for item in (plain, right)
            ]
            room[:] = turned[0]
            self.stored[name], self.expected[name] = room.astype(np.float32).copy(), turned[1]
        self.places = torch.from_numpy(
            np.flatnonzero((self.chunk < 0) & (places >= PREFIX) | (self.chunk >= 0) & (places % every == 0))
        )
        self.carry = CarryOver(self.layout, torch.from_numpy(self.chunk), torch.from_numpy(offset >= SINKS))
        self.still = np.setdiff1d(np.flatnonzero(self.chunk >= 0), self.places.numpy())

    def apply(self, *, spoil_sinks=False):
        """Compute the places and carry over; what the cache holds then."""
        kv = self.cache.kv_layers[0]
        expected = {name: torch.from_numpy(np.array(item, dtype=np.float32)) for name, item in self.expected.items()}
        if spoil_sinks:
            for item in expected.values():
                item[:, PREFIX : PREFIX + SINKS] = 1e4
        before = [room[0].index_select(1, self.places) for room in (kv.keys, kv.values)]
        fresh = [expected[name].index_select(1, self.places).to(kv.dtype) for name in ("keys", "values")]
        self.carry.apply(0, kv, self.places, Replaced(*before, *fresh))
        for room, item in zip((kv.keys, kv.values), fresh, strict=True):
            room[0].index_copy_(1, self.places, item)
        return {"keys": kv.keys[0].float().numpy(), "values": kv.values[0].float().numpy()}


def shift(plain, chunk):
    return np.broadcast_to(np.linspace(-1.0, 2.0, DIM, dtype=np.float32), plain.shape)


def errors(prompt, found, name):
    """Of the tokens that were not computed: the mean error now, and as stored."""
    return tuple(
        np.abs(item - prompt.expected[name])[:, prompt.still].mean() for item in (found[name], prompt.stored[name])
    )


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("spoil_sinks", [False, True])
def test_what_shifts_all_tokens_alike_is_undone(rope, spoil_sinks):
    prompt = Prompt(rope, shift)
    found = prompt.apply(spoil_sinks=spoil_sinks)
    for name in ("keys", "values"):
        now, before = errors(prompt, found, name)
        assert now < 0.06 * before
        outside = [*range(PREFIX), *range(TOTAL - 4, TOTAL)]
        others = np.setdiff1d(outside, prompt.places.numpy())
        assert (found[name][:, others] == prompt.stored[name][:, others]).all()


@pytest.mark.parametrize("rope", ROPES)
def test_alike_tokens_shift_alike(rope):
    """Two kinds of token in every chunk that shift in opposite ways: no mean of a chunk tells them apart."""

    def by_kind(plain, chunk):
        plain += np.where(np.arange(TOTAL) % 5 < 2, 4.0, -4.0).astype(np.float32)[None, :, None]
        return np.where(np.arange(TOTAL) % 5 < 2, 2.0, -2.0).astype(np.float32)[None, :, None] * np.ones_like(plain)

    prompt = Prompt(rope, by_kind)
    found = prompt.apply()
    for name in ("keys", "values"):
        now, before = errors(prompt, found, name)
        assert now < 0.3 * before


def test_each_chunk_has_a_shift_of_its_own():
    def by_chunk(plain, chunk):
        return np.where(chunk == 1, -2.0, 1.0).astype(np.float32)[None, :, None] * np.ones_like(plain)

    prompt = Prompt(ROPES[0], by_chunk)
    found = prompt.apply()
    for name in ("keys", "values"):
        now, before = errors(prompt, found, name)
        assert now < 0.2 * before


def test_change_that_samples_do_not_tell_one_another_moves_little():
    """Noise: the mean of some tokens says nothing of the others, and moving all by it would only add its error."""
    noise = np.random.default_rng(8).standard_normal((HEADS, TOTAL, DIM)).astype(np.float32)
    prompt = Prompt(ROPES[0], lambda plain, chunk: noise)
    found = prompt.apply()
    for name in ("keys", "values"):
        moved = np.abs(found[name] - prompt.stored[name])[:, prompt.still].mean()
        assert moved < 0.05 * np.abs(noise).mean()


def test_keys_of_unknown_position_stay_and_their_values_move():
    prompt = Prompt(None, shift)
    found = prompt.apply()
    assert (found["keys"][:, prompt.still] == prompt.stored["keys"][:, prompt.still]).all()
    now, before = errors(prompt, found, "values")
    assert now < 0.06 * before


def test_half_precision_is_computed_in_single():
    prompt = Prompt(ROPES[0], shift, dtype=KvDtype.BFLOAT16)
    found = prompt.apply()
    now, before = errors(prompt, found, "values")
    assert now < 0.06 * before


def test_what_differs_by_rounding_only_is_alike():
    """A codec may have given all tokens the same keys: what is left then is no reason for anything."""
    noise = np.random.default_rng(9).standard_normal((HEADS, TOTAL, DIM)).astype(np.float32)
    wobble = np.random.default_rng(10).standard_normal((HEADS, TOTAL, DIM)).astype(np.float32)
    found = []
    for rounding in (0.0, 1e-7, -1e-7):

        def same(plain, chunk, rounding=rounding):
            plain[:] = 0.7 + rounding * wobble
            return 1.0 + noise

        found.append(Prompt(ROPES[0], same).apply()["values"])
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


def test_nothing_computed_or_nothing_changed_moves_nothing():
    alike = Prompt(ROPES[0], lambda plain, chunk: np.zeros_like(plain))
    found = alike.apply()
    np.testing.assert_allclose(found["keys"], alike.stored["keys"], atol=1e-5)
    alone = Prompt(ROPES[0], shift, every=10_000)
    assert not (alone.chunk[alone.places.numpy()] >= 0).any()
    assert (alone.apply()["keys"] == alone.stored["keys"]).all()


def test_keys_that_are_no_numbers_move_nothing_and_break_nothing():
    prompt = Prompt(ROPES[0], shift)
    prompt.cache.layer_arrays(0).keys[0, prompt.places.numpy()[-10], 0] = np.nan
    found = prompt.apply()
    assert np.isfinite(found["values"]).all()


def test_long_prompts_have_fewer_samples(monkeypatch):
    monkeypatch.setattr(carry, "PAIRS_MAX", 30 * sum(LENGTHS))
    prompt = Prompt(ROPES[0], shift, every=2)
    found = prompt.apply()
    assert prompt.carry._samples.rows.numel() == 30
    now, before = errors(prompt, found, "values")
    assert now < 0.1 * before


def test_few_samples_move_nothing(monkeypatch):
    prompt = Prompt(ROPES[0], shift)
    count = int((prompt.carry.teaches[prompt.places]).sum())
    monkeypatch.setattr(carry, "SAMPLES_MIN", count + 1)
    found = prompt.apply()
    assert (found["values"][:, prompt.still] == prompt.stored["values"][:, prompt.still]).all()
    monkeypatch.setattr(carry, "SAMPLES_MIN", count)
    again = Prompt(ROPES[0], shift)
    assert (again.apply()["values"][:, again.still] != again.stored["values"][:, again.still]).all()
