"""Choosing rows: each layer computes the fresh tokens and the best of those that the layer before computed."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

torch = pytest.importorskip("torch", reason="scores are torch tensors")

from kvloom.blend.choose import Chooser  # noqa: E402
from kvloom.blend.select import Candidates, SelectionRule, StoredAndFresh  # noqa: E402
from kvloom.errors import InvalidRequest  # noqa: E402

OWNER = torch.tensor([0, 0, 0, -1, 1, 1, 1, -1])
STORED = [0, 1, 2, 4, 5, 6]


@dataclass(frozen=True, slots=True)
class Given(SelectionRule):
    """Scores and shares as they are given."""

    table: tuple = ()
    shares: tuple = (0.5, 0.5, 0.5)
    asked: ClassVar[list] = []

    def share(self, layer, layers):
        return self.shares[layer]

    def scores(self, candidates):
        self.asked.append(candidates)
        if candidates.kv is not None and candidates.count < 6:
            return candidates.kv.fresh_values[0, :, 0]
        return torch.tensor(self.table)


def chooser(rule, layers=3):
    stored = torch.tensor(STORED)
    candidates = Candidates(OWNER[stored], torch.tensor([0, 1, 2, 0, 1, 2]))
    return Chooser(rule, layers, OWNER, candidates)


def test_the_best_are_computed_beside_the_fresh():
    found = chooser(Given(table=(0.1, 0.9, 0.3, 0.8, 0.2, 0.4)))
    assert not found.decided
    found.decide(None)
    assert found.decided
    assert found.rows(0).tolist() == [1, 3, 4, 6, 7]
    assert found.chosen.tolist() == [1, 4, 6]
    assert found.rows(1).tolist() == [1, 3, 4, 6, 7]


def test_shares_that_shrink_leave_out_the_worst():
    found = chooser(Given(table=(0.1, 0.9, 0.3, 0.8, 0.2, 0.4), shares=(1.0, 0.5, 0.17)))
    found.decide(None)
    assert [found.rows(layer).tolist() for layer in range(3)] == [list(range(8)), [1, 3, 4, 6, 7], [1, 3, 7]]


def test_a_token_that_was_left_out_stays_out_however_a_later_layer_scores_it():
    table = ((9.0, 8.0, 7.0, 6.0, 0.0, 0.0), (0.0, 1.0, 2.0, 3.0, 99.0, 99.0), (0.0, 1.0, 5.0, 3.0, 99.0, 99.0))
    found = chooser(Given(table=table, shares=(0.67, 0.34, 0.17)))
    found.decide(None)
    assert [found.rows(layer).tolist() for layer in range(3)] == [[0, 1, 2, 3, 4, 7], [2, 3, 4, 7], [2, 3, 7]]


def test_what_a_layer_made_of_its_tokens_chooses_among_them():
    rule = Given(table=(0.1, 0.9, 0.3, 0.8, 0.2, 0.4), shares=(0.5, 0.34, 0.34))
    found = chooser(rule)
    found.decide(None)
    found.rows(0)
    values = torch.tensor([0.5, 0.1, 0.7]).view(1, 3, 1)
    found.rescore(StoredAndFresh(values, values, values, values))
    assert rule.asked[-1].chunk.tolist() == [0, 1, 1]
    assert rule.asked[-1].offset.tolist() == [1, 0, 2]
    assert found.rows(1).tolist() == [1, 3, 6, 7]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidRequest, match=r"scores \[3\] for 6 tokens in 3 layers"):
        chooser(Given(table=(0.1, 0.2, 0.3))).decide(None)
    with pytest.raises(InvalidRequest, match="not been asked"):
        chooser(Given()).rows(0)
