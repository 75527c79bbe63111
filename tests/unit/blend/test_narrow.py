"""Narrowing: the right rows of everything a decoder layer is given, and a reason where that cannot be known."""

import pytest

torch = pytest.importorskip("torch", reason="narrowing indexes torch tensors")

from kvloom.blend.narrow import Narrower  # noqa: E402
from kvloom.errors import UnsupportedModel  # noqa: E402

ROWS = torch.tensor([1, 3, 4])
COMPUTED, PREFIX = 6, 2


@pytest.fixture
def narrower():
    return Narrower(ROWS, COMPUTED, PREFIX)


def narrowed(narrower, **kwargs):
    return narrower.narrow((torch.zeros(1, COMPUTED, 4),), kwargs)[1]


def test_hidden_states_are_narrowed_once(narrower):
    hidden = torch.randn(1, COMPUTED, 4)
    first = narrower.narrow((hidden,), {})[0][0]
    assert torch.equal(first, hidden[:, ROWS])
    assert narrower.narrow((first,), {})[0][0] is first
    by_name = narrower.narrow((), {"hidden_states": hidden})[1]["hidden_states"]
    assert torch.equal(by_name, first)


def test_a_smaller_set_takes_its_rows_from_the_set_before():
    hidden = torch.randn(1, COMPUTED, 4)
    smaller = Narrower(torch.tensor([1, 4]), COMPUTED, PREFIX, before=ROWS)
    assert torch.equal(smaller.narrow((hidden[:, ROWS],), {})[0][0], hidden[:, [1, 4]])


def test_positions_and_rotary_tables_follow(narrower):
    cos, sin = torch.randn(1, COMPUTED, 8), torch.randn(1, COMPUTED, 8)
    found = narrowed(
        narrower,
        position_ids=torch.arange(2, 8)[None],
        cache_position=torch.arange(2, 8),
        position_embeddings=(cos, sin),
        use_cache=True,
        past_key_values=None,
    )
    assert found["position_ids"].tolist() == [[3, 5, 6]]
    assert found["cache_position"].tolist() == [3, 5, 6]
    assert torch.equal(found["position_embeddings"][0], cos[:, ROWS])
    assert torch.equal(found["position_embeddings"][1], sin[:, ROWS])
    assert found["use_cache"] is True
    three_axes = torch.arange(18).view(3, 1, COMPUTED)
    assert torch.equal(narrowed(narrower, position_ids=three_axes)["position_ids"], three_axes[:, :, ROWS])


def test_a_boolean_mask_becomes_additive_and_is_made_once(narrower):
    allowed = torch.rand(1, 1, COMPUTED, 8) > 0.5
    found = narrowed(narrower, attention_mask=allowed)["attention_mask"]
    assert torch.equal(found == 0, allowed[:, :, ROWS])
    assert torch.equal(found == float("-inf"), ~allowed[:, :, ROWS])
    assert narrowed(narrower, attention_mask=allowed)["attention_mask"] is found
    additive = torch.randn(1, 1, COMPUTED, 8)
    assert torch.equal(narrowed(narrower, attention_mask=additive)["attention_mask"], additive[:, :, ROWS])


def test_no_mask_means_causal(narrower):
    found = narrowed(narrower, attention_mask=None)["attention_mask"]
    assert found.shape == (1, 1, 3, 8)
    assert (found[0, 0] == 0).sum(dim=1).tolist() == [4, 6, 7]
    assert (found[0, 0, 0, :4] == 0).all()


def test_every_row_means_nothing_to_do():
    whole = Narrower(torch.arange(COMPUTED), COMPUTED, PREFIX)
    args, kwargs = (torch.zeros(1, COMPUTED, 4),), {"attention_mask": None}
    assert whole.narrow(args, kwargs) == (args, kwargs)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("attention_mask", (1, COMPUTED)), ("attention_mask", (1, 1, 5, 8)), ("extra", (3, 1, COMPUTED, 2))],
)
def test_what_is_not_understood_is_refused(narrower, name, shape):
    with pytest.raises(UnsupportedModel, match=name.replace("_", " ") if name == "attention_mask" else name):
        narrowed(narrower, **{name: torch.zeros(shape)})


def test_per_token_extras_follow_and_others_pass(narrower):
    per_token, other = torch.randn(1, COMPUTED, 2), torch.randn(5)
    found = narrowed(narrower, per_layer_input=per_token, scale=other)
    assert torch.equal(found["per_layer_input"], per_token[:, ROWS])
    assert found["scale"] is other
