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


def test_query_attention_takes_sinks_then_a_sample_then_what_is_attended_to():
    attention = torch.zeros(3, 30)
    attention[0, 7], attention[1, 13], attention[2, 29] = 5.0, 3.0, 4.0
    told = Candidates(*(getattr(candidates(12, 18), name) for name in ("chunk", "offset")), attention=attention)
    order = QueryAttention(0.5, sinks=2, sampled=0.5).scores(told).argsort(descending=True, stable=True).tolist()
    assert sorted(order[:4]) == [0, 1, 12, 13]
    assert sorted(order[4:11]) == [2, 6, 10, 14, 18, 22, 26]
    assert order[11:13] == [7, 29]
    plain = QueryAttention(sinks=0, sampled=0.0).scores(told).argsort(descending=True, stable=True).tolist()
    assert plain[:3] == [7, 29, 13]
    assert QueryAttention(0.5, sinks=3, sampled=0.5).samples(told).nonzero().squeeze(1).tolist() == [6, 10, 18, 22, 26]
    assert QueryAttention(carry=False).samples(told) is None
    assert not QueryAttention(sampled=0.0).samples(told).any()


def test_query_attention_without_any_is_all_alike():
    assert QueryAttention().scores(candidates(0)).shape == (0,)
    nothing = Candidates(torch.zeros(4), torch.arange(4) + 10, attention=torch.zeros(2, 4))
    assert QueryAttention(sampled=0.0).scores(nothing).tolist() == [0.0] * 4


@pytest.mark.parametrize(("wrong", "message"), [({"sinks": -1}, "sinks is -1"), ({"sampled": 1.5}, r"sampled is 1\.5")])
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
