"""Size and quality of every scheme and level, on every kind of text."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from .progress import Progress
from .reference import Reference, nll_of
from .schemes import Restored, Scheme
from .subject import Subject


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One level of one scheme on one kind of text, all contexts of it together; KL and NLL in nats per token."""

    scheme: str
    variant: str
    level: str
    text: str
    model: str
    contexts: int
    bits_per_value: float
    side_bits_per_value: float | None
    kl: float
    kl_ci95: float | None
    delta_nll: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class _Place:
    scheme: str
    variant: str
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class _Measured:
    """One context."""

    bits_per_value: float
    side_bits_per_value: float | None
    kl: float
    delta_nll: float
    top1_agreement: float


def measure(
    subject: Subject,
    schemes: Mapping[str, Sequence[Scheme]],
    references: Iterable[Reference],
    contexts: int,
    progress: Progress,
) -> Iterator[list[QualityRow]]:
    """Every scheme on every one of ``contexts``: all rows so far after each context."""
    seen: dict[_Place, list[_Measured]] = {}
    # Contexts come in the order of texts, so rows of one scheme would be apart.
    order = {name: place for place, name in enumerate(schemes)}
    for number, reference in enumerate(references):
        for name, parts in schemes.items():
            for scheme in parts:
                for restored in scheme.restore(reference.kv, subject.layout):
                    place = _Place(name, restored.variant, restored.level, reference.kind.value)
                    seen.setdefault(place, []).append(_measure_one(subject, reference, restored))
            progress.say(f"context {number + 1} of {contexts} ({reference.kind}): {name}")
        yield [_row(subject, place, seen[place]) for place in sorted(seen, key=lambda item: order[item.scheme])]


def _measure_one(subject: Subject, reference: Reference, restored: Restored) -> _Measured:
    expected = reference.log_probabilities
    logits = subject.following(reference.ids, restored.kv.keys, restored.kv.values)
    found = torch.log_softmax(logits.double(), dim=-1)
    values = sum(item.size for item in (*reference.kv.keys, *reference.kv.values))
    return _Measured(
        restored.bits / values,
        None if restored.side_bits is None else restored.side_bits / values,
        float((expected.exp() * (expected - found)).sum(-1).mean()),
        nll_of(found, reference.ids) - reference.nll,
        float((expected.argmax(-1) == found.argmax(-1)).double().mean()),
    )


def _row(subject: Subject, place: _Place, measured: Sequence[_Measured]) -> QualityRow:
    kl = [item.kl for item in measured]
    sides = [item.side_bits_per_value for item in measured if item.side_bits_per_value is not None]
    return QualityRow(
        scheme=place.scheme,
        variant=place.variant,
        level=place.level,
        text=place.text,
        model=subject.name,
        contexts=len(measured),
        bits_per_value=statistics.fmean(item.bits_per_value for item in measured),
        side_bits_per_value=statistics.fmean(sides) if sides else None,
        kl=statistics.fmean(kl),
        kl_ci95=1.96 * statistics.stdev(kl) / len(kl) ** 0.5 if len(kl) > 1 else None,
        delta_nll=statistics.fmean(item.delta_nll for item in measured),
        top1_agreement=statistics.fmean(item.top1_agreement for item in measured),
    )


def show(rows: Sequence[QualityRow]) -> None:
    """Print the table."""
    print(
        f"{'text':10} {'scheme':20} {'level':24} {'bits/value':>10} {'side':>7} {'KL (nats)':>10} {'± 95 %':>9} "
        f"{'ΔNLL':>9} {'top-1':>7}"
    )
    for row in sorted(rows, key=lambda item: item.text):
        side = "" if row.side_bits_per_value is None else f"{row.side_bits_per_value:.4f}"
        level = f"{row.variant} {row.level}".strip()
        spread = "" if row.kl_ci95 is None else f"{row.kl_ci95:.5f}"
        print(
            f"{row.text:10} {row.scheme:20} {level:24} {row.bits_per_value:10.4f} {side:>7} {row.kl:10.5f} "
            f"{spread:>9} {row.delta_nll:9.5f} {row.top1_agreement:7.2%}"
        )
