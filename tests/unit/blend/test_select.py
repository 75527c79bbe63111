"""Selection rules: each picks the tokens it says it picks."""

import pytest

torch = pytest.importorskip("torch", reason="rules score torch tensors")

from kvloom.blend.select import (  # noqa: E402
    RULES,
    AllTokens,
    Candidates,
    FirstTokens,
    KvDeviation,
    NoTokens,
    QueryAttention,
    RecordedNeed,
    StoredAndFresh,
    selection_rule,
)
from kvloom.errors import InvalidRequest  # noqa: E402


def candidates(*lengths, kv=None):
    chunk = torch.cat([torch.full((n,), index) for index, n in enumerate(lengths)])
    return Candidates(chunk, torch.cat([torch.arange(n) for n in lengths]), kv)


def test_deviation_ranks_by_the_distance_of_the_values():
    stored = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    fresh = stored.clone()
    fresh[0, 4] += 3.0
    fresh[1, 1] -= 2.0
    fresh[:, 3, 0] += 0.5
    keys = torch.zeros(2, 6, 4)
    scores = KvDeviation().scores(candidates(6, kv=StoredAndFresh(keys, stored, keys + 9.0, fresh)))
    assert scores.argsort(descending=True)[:3].tolist() == [4, 1, 3]
    torch.testing.assert_close(scores, torch.tensor([0.0, 16.0, 0.0, 0.5, 36.0, 0.0]))


def test_deviation_of_half_precision_does_not_overflow():
    stored = torch.zeros(1, 2, 4, dtype=torch.float16)
    fresh = torch.tensor([[[300.0] * 4, [400.0] * 4]], dtype=torch.float16)
    scores = KvDeviation().scores(candidates(2, kv=StoredAndFresh(stored, stored, fresh, fresh)))
    assert scores.isfinite().all()
    assert scores.argmax() == 1


def test_deviation_needs_kv():
    with pytest.raises(InvalidRequest, match="fresh and the stored KV"):
        KvDeviation().scores(candidates(3))


def test_first_tokens_takes_equally_many_of_each_chunk():
    top = FirstTokens().scores(candidates(4, 6, 3)).topk(6).indices
    assert sorted(top.tolist()) == [0, 1, 4, 5, 10, 11]


def spread(rule, told):
    """Those that are taken before what is attended to, and are no sinks."""
    nothing = Candidates(told.chunk, told.offset, attention=torch.zeros(1, told.count))
    return (rule.scores(nothing) == 1.0).nonzero().squeeze(1).tolist()


def test_query_attention_takes_sinks_then_a_sample_then_what_is_attended_to():
    told = candidates(12, 18)
    rule = QueryAttention(0.4, sinks=2, sampled=0.5, sampled_max=1.0)
    sampled = spread(rule, told)
    assert len(sampled) == pytest.approx(0.2 * 30, abs=3)
    first, second, third = [n for n in range(30) if n not in sampled and told.offset[n] >= 2][-3:]
    attention = torch.zeros(3, 30)
    attention[0, first], attention[1, second], attention[2, third] = 5.0, 3.0, 4.0
    told = Candidates(told.chunk, told.offset, attention=attention)
    order = rule.scores(told).argsort(descending=True, stable=True).tolist()
    assert sorted(order[:4]) == [0, 1, 12, 13]
    assert sorted(order[4 : 4 + len(sampled)]) == sampled
    assert order[4 + len(sampled) :][:3] == [first, third, second]
    plain = QueryAttention(sinks=0, sampled=0.0)
    assert plain.scores(told).argsort(descending=True, stable=True).tolist()[:3] == [first, third, second]


def test_all_but_sinks_teach_the_others():
    told = candidates(12, 18)
    assert torch.equal(QueryAttention(sinks=3).samples(told), told.offset >= 3)
    assert QueryAttention(carry=False).samples(told) is None


@pytest.mark.parametrize("period", [7, 12, 13, 16, 24])
def test_samples_fall_in_with_no_period_of_the_text(period):
    told = candidates(600)
    sampled = torch.tensor(spread(QueryAttention(0.13), told))
    assert len(sampled) == pytest.approx(0.052 * 600, rel=0.2)
    assert len(torch.unique(sampled % period)) >= period / 3


def test_query_attention_without_any_is_all_alike():
    assert QueryAttention().scores(candidates(0)).shape == (0,)
    nothing = Candidates(torch.zeros(4), torch.arange(4) + 10, attention=torch.zeros(2, 4))
    assert QueryAttention(sampled=0.0).scores(nothing).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sinks": -1}, "sinks is -1"),
        ({"sampled": 1.5}, r"sampled is 1\.5"),
        ({"sampled_max": -1}, "sampled_max is -1"),
        ({"tokens_min": -1}, "tokens_min is -1"),
    ],
)
def test_query_attention_needs_sense(wrong, message):
    with pytest.raises(InvalidRequest, match=message):
        QueryAttention(**wrong)


def test_recorded_need_is_taken_as_it_is():
    need = torch.tensor([0.3, -2.0, 0.7])
    told = Candidates(torch.zeros(3), torch.arange(3), recorded=need)
    assert RecordedNeed().scores(told) is need
    with pytest.raises(InvalidRequest, match="for every chunk"):
        RecordedNeed().scores(candidates(3))


def test_shares_fall_from_layer_to_layer_and_keep_their_mean():
    rule = KvDeviation(0.2, shrink=0.5)
    shares = [rule.share(layer, 11) for layer in range(1, 11)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(0.3)
    assert shares[-1] == pytest.approx(0.1)
    assert sum(shares) / len(shares) == pytest.approx(0.2)
    assert {KvDeviation(0.2).share(layer, 11) for layer in range(1, 11)} == {0.2}
    assert KvDeviation(0.9, shrink=0.5).share(1, 11) == 1.0


def test_rules_that_look_at_nothing_decide_before_the_first_layer():
    assert [rule.decision_layer for rule in (AllTokens, NoTokens, FirstTokens, KvDeviation)] == [0, 0, 0, 1]
    assert (AllTokens().ratio, NoTokens().ratio) == (1.0, 0.0)


def test_every_rule_is_found_by_name():
    for name, rule in RULES.items():
        assert isinstance(selection_rule(name), rule)
        assert selection_rule(name, 0.25).ratio == 0.25
    with pytest.raises(
        InvalidRequest, match=r"rule 'nope' is unknown; rules are default, cacheblend, cache-craft, epic, naive, full"
    ):
        selection_rule("nope")


@pytest.mark.parametrize("rule", RULES.values())
@pytest.mark.parametrize("ratio", [-0.01, 1.01, float("nan")])
def test_a_ratio_is_a_share(rule, ratio):
    with pytest.raises(InvalidRequest, match="recompute ratio is"):
        rule(ratio)


def test_shrink_is_a_share():
    with pytest.raises(InvalidRequest, match=r"shrink is 1\.5"):
        KvDeviation(0.2, shrink=1.5)


@pytest.mark.parametrize(
    ("stored", "least", "expected"), [(1000, 64, 130), (200, 64, 64), (20, 64, 20), (200, 0, 26), (0, 64, 0)]
)
def test_of_a_short_text_all_is_computed_that_takes_no_longer(stored, least, expected):
    assert QueryAttention(0.13, tokens_min=least).tokens(3, 9, stored) == expected
