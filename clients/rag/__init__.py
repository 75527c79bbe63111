"""Answer questions over documents whose KV is kept in a kvloom daemon: prefill each document once, reuse it anywhere.

    rag = RagPipeline(model, tokenizer, KvloomClient())
    rag.ingest(documents)
    answer = rag.generate(question, documents)

Needs the ``[rag]`` extra; importing this package does not load torch until a pipeline is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .batching import BatchQuestion, plan_batch
from .documents import Document, DocumentSpan, Prompt, PromptTemplate
from .trials import Trial, read_trials, trials_of

if TYPE_CHECKING:
    from .advised import PlanPreview
    from .async_service import AsyncAnswerStream, AsyncRagService
    from .background import IngestJob
    from .decoding import Decoding, Sampler
    from .library import DocumentVersion, Library
    from .loading import PlanSettings
    from .metrics import AnswerMetrics
    from .pipeline import Answer, IngestReport, LoadedContext, RagPipeline, Strategy
    from .progress import IngestCancelled, IngestProgress, IngestSummary
    from .service import LibraryChange, RagService
    from .streaming import Answered, AnswerStream

__all__ = [
    "Answer",
    "AnswerMetrics",
    "AnswerStream",
    "Answered",
    "AsyncAnswerStream",
    "AsyncRagService",
    "BatchQuestion",
    "Decoding",
    "Document",
    "DocumentSpan",
    "DocumentVersion",
    "IngestCancelled",
    "IngestJob",
    "IngestProgress",
    "IngestReport",
    "IngestSummary",
    "Library",
    "LibraryChange",
    "LoadedContext",
    "PlanPreview",
    "PlanSettings",
    "Prompt",
    "PromptTemplate",
    "RagPipeline",
    "RagService",
    "Sampler",
    "Strategy",
    "Trial",
    "plan_batch",
    "read_trials",
    "trials_of",
]

_MODULES = {
    "Answer": "pipeline",
    "AnswerMetrics": "metrics",
    "AnswerStream": "streaming",
    "Answered": "streaming",
    "AsyncAnswerStream": "async_service",
    "AsyncRagService": "async_service",
    "Decoding": "decoding",
    "DocumentVersion": "library",
    "IngestCancelled": "progress",
    "IngestJob": "background",
    "IngestProgress": "progress",
    "IngestReport": "pipeline",
    "IngestSummary": "progress",
    "Library": "library",
    "LibraryChange": "service",
    "LoadedContext": "pipeline",
    "PlanPreview": "advised",
    "PlanSettings": "loading",
    "RagPipeline": "pipeline",
    "RagService": "service",
    "Sampler": "decoding",
    "Strategy": "pipeline",
}
"""What needs torch, or is seldom used, is imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
