"""What the demo measured: one row per question, and the figures made of them. All figures come from the rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients.rag.pipeline import Answer

__all__ = ["DemoResult", "KillReport", "QuestionRow", "TierRow", "kl_divergence"]

FIRST_TOKENS = 20


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """One question answered three ways over the same documents in the same order."""

    question: str
    recompute: Answer
    blend: Answer
    prefix: Answer


@dataclass(frozen=True, slots=True)
class TierRow:
    """What a tier holds at the end."""

    name: str
    records: int
    used_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class KillReport:
    """The daemon killed with SIGKILL in mid-ingest: chunks acknowledged as on disk before, and found intact after."""

    acknowledged: int
    found: int


@dataclass(frozen=True, slots=True)
class DemoResult:
    """All that was measured. ``stored_bits_per_value`` counts the documents' containers whole."""

    rows: tuple[QuestionRow, ...]
    documents: int
    document_tokens: int
    stored_bytes: int
    values_per_token: int
    daemon_pids: tuple[int, ...]
    kill: KillReport
    tiers: tuple[TierRow, ...]
    model: str
    seconds: float

    @property
    def daemon_restarted(self) -> bool:
        """Whether the questions were answered by another process than the one that took the documents."""
        return len(set(self.daemon_pids)) >= 2

    @property
    def bits_per_value(self) -> float:
        """Stored bits per KV value of the documents, all overhead included."""
        return 8 * self.stored_bytes / (self.document_tokens * self.values_per_token)

    def ttft_seconds(self, way: str) -> float:
        """Median time to first token of ``recompute``, ``blend`` or ``prefix``."""
        return median(answer.ttft_seconds for answer in self._answers(way))

    def speedup(self, way: str) -> float:
        """Median over the questions of recompute's time to first token over this way's, question by question."""
        return median(
            row.recompute.ttft_seconds / answer.ttft_seconds
            for row, answer in zip(self.rows, self._answers(way), strict=True)
        )

    def same_first_token(self, way: str) -> float:
        """Share of the questions whose first token is that of recompute."""
        return self._share(way, lambda ours, theirs: ours.token_ids[:1] == theirs.token_ids[:1])

    def same_first_tokens(self, way: str) -> float:
        """Share of the questions whose first 20 tokens are all those of recompute."""
        return self._share(way, lambda ours, theirs: ours.token_ids[:FIRST_TOKENS] == theirs.token_ids[:FIRST_TOKENS])

    def kl(self, way: str) -> float:
        """Mean KL divergence (nats) of the next-token distribution from recompute's."""
        return mean(
            kl_divergence(row.recompute.logits, answer.logits)
            for row, answer in zip(self.rows, self._answers(way), strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """The figures and the rows, ready for ``json.dump``."""
        ways = ("blend", "prefix")
        return {
            "model": self.model,
            "documents": self.documents,
            "questions": len(self.rows),
            "context_tokens": mean(row.recompute.prompt_tokens for row in self.rows),
            "daemon_restarted": self.daemon_restarted,
            "ttft_s": {way: self.ttft_seconds(way) for way in ("recompute", *ways)},
            "speedup": {way: self.speedup(way) for way in ways},
            "bits_per_value": self.bits_per_value,
            "bytes_per_token": self.stored_bytes / self.document_tokens,
            "bytes_per_token_bf16": 2 * self.values_per_token,
            "agreement": {
                "first_token": {way: self.same_first_token(way) for way in ways},
                "first_20": {way: self.same_first_tokens(way) for way in ways},
            },
            "kl": {way: self.kl(way) for way in ways},
            "killed_in_mid_ingest": {"acknowledged": self.kill.acknowledged, "found": self.kill.found},
            "tiers": {
                tier.name: {"records": tier.records, "used_bytes": tier.used_bytes, "limit_bytes": tier.limit_bytes}
                for tier in self.tiers
            },
            "seconds": self.seconds,
            "rows": [_row_to_json(row) for row in self.rows],
        }

    def _answers(self, way: str) -> Sequence[Answer]:
        return [getattr(row, way) for row in self.rows]

    def _share(self, way: str, same: Callable[[Answer, Answer], bool]) -> float:
        pairs = zip(self._answers(way), (row.recompute for row in self.rows), strict=True)
        return mean(float(same(ours, theirs)) for ours, theirs in pairs)


def kl_divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """KL divergence (nats) of softmax(``other``) from softmax(``reference``), logits ``[vocabulary]``."""
    log_reference, log_other = _log_softmax(reference), _log_softmax(other)
    return float((np.exp(log_reference) * (log_reference - log_other)).sum())


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _row_to_json(row: QuestionRow) -> dict[str, Any]:
    ways = {"recompute": row.recompute, "blend": row.blend, "prefix": row.prefix}
    return {
        "question": row.question,
        "context_tokens": row.recompute.prompt_tokens,
        "ttft_s": {name: answer.ttft_seconds for name, answer in ways.items()},
        "kl": {name: kl_divergence(row.recompute.logits, ways[name].logits) for name in ("blend", "prefix")},
        "recompute_ratio": row.blend.blend.recompute_ratio if row.blend.blend else None,
        "token_layer_cost": row.blend.blend.token_layer_cost if row.blend.blend else None,
        "answers": {name: answer.text for name, answer in ways.items()},
    }
