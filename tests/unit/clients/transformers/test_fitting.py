"""Fitted steps: ``standard`` costs on the model what was asked for, whatever calibration had predicted."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the Transformers client runs torch models")

from kvloom.clients.transformers import SequencePlan, calibration_samples, fitted, model_layout  # noqa: E402
from kvloom.clients.transformers.fitting import UNSEEN, measured_kl  # noqa: E402
from kvloom.codec import calibrate  # noqa: E402
from kvloom.errors import InvalidRequest  # noqa: E402

pytestmark = pytest.mark.model

PLAN = SequencePlan(context_tokens=40, following_tokens=12, draws=2)
SEQUENCES = [np.random.default_rng(seed).integers(1, 96, PLAN.tokens) for seed in range(8)]


@pytest.fixture(scope="module")
def lively(tiny):
    """A model to which what stands in its context matters."""
    model = tiny("Llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def profile(lively):
    layout = model_layout(lively)
    return calibrate(calibration_samples(lively, SEQUENCES, plan=PLAN, layout=layout), layout)


def test_the_divergence_that_was_asked_for(lively, profile):
    before = measured_kl(profile, lively, SEQUENCES[::2], plan=PLAN)
    for wanted in (before / 5, before * 3):
        found = fitted(profile, lively, SEQUENCES, plan=PLAN, kl_target=UNSEEN * wanted)
        after = measured_kl(found, lively, SEQUENCES[::2], plan=PLAN)
        assert abs(np.log(after / wanted)) < 0.6 * abs(np.log(before / wanted))


def test_no_further_than_a_factor_of_four(lively, profile):
    found = fitted(profile, lively, SEQUENCES, plan=PLAN, kl_target=1e-30)
    np.testing.assert_allclose(found.blocks[0].parts[0].scale, profile.blocks[0].parts[0].scale / 4, rtol=1e-6)


def test_what_cannot_be_measured_stays(lively, profile):
    assert fitted(profile, lively, [], plan=PLAN) is profile
    draft_only = replace(profile, refinements=0)
    assert fitted(draft_only, lively, SEQUENCES, plan=PLAN) is draft_only


def test_short_sequences_are_refused(lively, profile):
    with pytest.raises(InvalidRequest, match=f"51 tokens, {PLAN.tokens} are needed"):
        fitted(profile, lively, [item[:51] for item in SEQUENCES], plan=PLAN)
