"""``kvloom calibrate --blend``: how much of blended documents a model needs recomputed, kept in its profile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from ... import limits

if TYPE_CHECKING:
    from ...clients.rag.trials import Trial
    from ...clients.transformers import LoadedModel
    from ...codec import AnyProfile

__all__ = ["BlendOptions", "BlendRecord", "add_blend_row", "blend_option", "gated_profile", "trials_for"]

_KL_DEFAULT = 0.05
_AGREEMENT_DEFAULT = 0.75
_TRIALS_DEFAULT = 12


@dataclass(frozen=True, slots=True)
class BlendOptions:
    """What to measure: over the questions of a file, or over some made of the text where there is none."""

    questions: Path | None
    trials: int
    kl: float
    agreement: float


@dataclass(frozen=True, slots=True)
class BlendRecord:
    """What was measured, as it is printed; ``ratio`` is None where documents are to be recomputed, for ``reason``."""

    prompts: int
    ratio: float | None
    kl: float | None
    agreement: float | None
    reason: str


def blend_option(command: Callable[..., None]) -> Callable[..., None]:
    """The options of blending; the command is given their values one by one."""
    options = (
        click.option("--blend", is_flag=True, help="Measure how much of blended documents must be recomputed, too."),
        click.option(
            "--questions",
            metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path),
            help=".jsonl of 'question' and 'documents' to blend.  [default: made of the text]",
        ),
        click.option(
            "--trials",
            type=click.IntRange(1, limits.BLEND_TRIALS_MAX),
            default=_TRIALS_DEFAULT,
            show_default=True,
            help="Prompts to blend.",
        ),
        click.option(
            "--blend-kl",
            type=click.FloatRange(0, 10, min_open=True),
            default=_KL_DEFAULT,
            show_default=True,
            help="Nats that an answer may be from full prefill's, in the mean.",
        ),
        click.option(
            "--agreement",
            type=click.FloatRange(0, 1),
            default=_AGREEMENT_DEFAULT,
            show_default=True,
            help="Share of answers that must begin with the same token.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def trials_for(options: BlendOptions, texts: Sequence[str]) -> "list[Trial]":
    """The prompts to blend; raises :class:`InvalidRequest` where ``texts``, or the file of questions, have none."""
    from ...clients.rag.trials import read_trials, trials_of

    if options.questions is not None:
        return read_trials(options.questions, options.trials)
    return trials_of(texts, options.trials)


def gated_profile(
    profile: "AnyProfile",
    loaded: "LoadedModel",
    trials: "Sequence[Trial]",
    options: BlendOptions,
    progress: Callable[[], None] | None = None,
) -> "tuple[AnyProfile, BlendRecord]":
    """``profile`` with what the model makes of ``trials``, and that as a record."""
    from ...blend.gate import BlendGate, QualityTarget
    from ...clients.rag.documents import PromptTemplate
    from ...clients.rag.gating import gated
    from ...clients.transformers import model_identity

    found = gated(
        profile,
        loaded.model,
        PromptTemplate(loaded.tokenizer),
        trials,
        fingerprint=model_identity(loaded.model).fingerprint,
        target=QualityTarget(options.kl, options.agreement),
        progress=progress,
    )
    gate = BlendGate.from_bytes(found.blend_gate)
    chosen = gate.chosen
    if chosen is None:
        return found, BlendRecord(gate.prompts, None, None, None, gate.reason)
    return found, BlendRecord(gate.prompts, chosen.ratio, chosen.kl, chosen.agreement, "")


def add_blend_row(table: Table, record: BlendRecord) -> None:
    """Say it in the table that a calibration prints."""
    if record.ratio is None:
        table.add_row("blending", f"not on this model: {record.reason}")
        return
    table.add_row(
        "blending",
        f"recompute {record.ratio:.0%}: KL {record.kl:.4f} nats, {record.agreement:.0%} of first tokens "
        f"over {record.prompts} prompts",
    )
