"""How far an ingest has come, and what it came to."""

from dataclasses import dataclass

from .documents import Document

__all__ = ["IngestCancelled", "IngestProgress", "IngestSummary"]


class IngestCancelled(Exception):
    """The ingest was cancelled; what it had stored by then stays stored."""


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """``done`` of ``total`` documents are stored, ``document`` the last of them, ``seconds`` after the beginning."""

    done: int
    total: int
    seconds: float
    document: Document


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What an ingest did. ``documents`` are distinct ones, ``duplicates`` what was equal to one of them."""

    documents: int
    duplicates: int
    already_stored: int
    stored_tokens: int
    stored_bytes: int
    seconds: float
