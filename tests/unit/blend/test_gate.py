"""The gate: the smallest ratio that meets a target, and what a profile keeps of that."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="blending runs torch models")

from kvloom import limits  # noqa: E402
from kvloom.blend.gate import (  # noqa: E402
    RATIOS,
    BlendGate,
    QualityTarget,
    RatioQuality,
    fewest_recomputed,
    unmovable_reason,
)
from kvloom.codec.layout import Layout, Rope  # noqa: E402
from kvloom.errors import InvalidData, InvalidRequest  # noqa: E402

pytestmark = pytest.mark.model

TARGET = QualityTarget(kl=0.05, agreement=0.75)
FINGERPRINT = bytes(range(32))


def quality(ratio: float, kl: float, error: float = 0.0, agreement: float = 1.0) -> RatioQuality:
    return RatioQuality(ratio, kl, error, agreement)


GATE = BlendGate(FINGERPRINT, TARGET, 12, (quality(0.09, 0.08), quality(0.13, 0.03), quality(0.18, 0.02)))


@given(st.integers(0, len(RATIOS)))
def test_the_smallest_ratio_that_is_good_enough_is_found_in_few_measurements(first_good):
    asked = []

    def measure(ratio):
        asked.append(ratio)
        return quality(ratio, 0.01 if RATIOS.index(ratio) >= first_good else 0.2)

    found = fewest_recomputed(measure, TARGET)
    assert len(asked) == len(found) <= 3
    assert [item.ratio for item in found] == sorted(asked)
    chosen = BlendGate(FINGERPRINT, TARGET, 1, found).chosen
    assert (chosen.ratio if chosen else None) == (RATIOS[first_good] if first_good < len(RATIOS) else None)


def test_a_target_is_met_with_a_standard_error_to_spare_and_by_both_measures():
    assert quality(0.1, 0.04, 0.01).meets(TARGET)
    assert not quality(0.1, 0.045, 0.01).meets(TARGET)
    assert not quality(0.1, 0.0, agreement=0.7).meets(TARGET)


def test_what_a_profile_keeps_is_read_back():
    assert BlendGate.from_bytes(GATE.to_bytes()) == GATE
    refused = BlendGate(FINGERPRINT, TARGET, refusal="layer 0 has learned positions")
    assert BlendGate.from_bytes(refused.to_bytes()) == refused
    assert (refused.chosen, refused.reason) == (None, "layer 0 has learned positions")
    many = tuple(quality(0.123456789 + n / 1e6, 1 / 3, 1 / 7, 2 / 3) for n in range(len(RATIOS)))
    assert len(replace(GATE, measured=many).to_bytes()) <= limits.BLEND_GATE_BYTES_MAX


def test_who_misses_the_target_is_told_by_how_much():
    gate = replace(GATE, measured=(quality(0.5, 0.081, 0.012, 0.5),))
    assert gate.reason == (
        "blending misses the quality asked for: recomputing 50% of the tokens leaves a KL of 0.081 ± 0.012 nats and "
        "50% of first tokens; at most 0.05 and at least 75% are"
    )
    assert GATE.reason == ""


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "00"},
        {"fingerprint": None},
        {"target": {"kl": -1, "agreement": 0.5}},
        {"target": {"kl": "nan", "agreement": 0.5}},
        {"target": []},
        {"prompts": limits.BLEND_TRIALS_MAX + 1},
        {"prompts": "inf"},
        {"measured": []},
        {"measured": [{"ratio": 2.0, "kl": 0.0, "kl_error": 0.0, "agreement": 1.0}]},
        {"measured": [{"ratio": 0.1, "kl": "nan", "kl_error": 0.0, "agreement": 1.0}]},
        {"measured": 3},
        {"refusal": "both"},
        {"measured": [], "refusal": "x" * 401},
    ],
)
def test_records_that_cannot_be_are_refused(change):
    fields = {**json.loads(GATE.to_bytes()), **change}
    with pytest.raises(InvalidData):
        BlendGate.from_bytes(json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 4000, b" " * (limits.BLEND_GATE_BYTES_MAX + 1)])
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(InvalidData):
        BlendGate.from_bytes(data)


def test_targets_that_nobody_can_mean_are_refused():
    with pytest.raises(InvalidRequest, match="0 nats"):
        QualityTarget(kl=0)
    with pytest.raises(InvalidRequest, match=r"1\.5"):
        QualityTarget(agreement=1.5)


def test_a_layer_whose_keys_cannot_be_moved_is_named():
    movable = Layout.uniform(layers=3, kv_heads=1, head_dim=4, rope=Rope((1.0, 0.1)))
    assert unmovable_reason(movable) == ""
    stuck = replace(movable, layers=(movable.layers[0], replace(movable.layers[1], rope=None), movable.layers[2]))
    assert "1 of 3 layers, the first 1," in unmovable_reason(stuck)
