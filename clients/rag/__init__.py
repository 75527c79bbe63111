"""Answer questions over documents whose KV is kept in a kvloom daemon: prefill each document once, reuse it anywhere.

    rag = RagPipeline(model, tokenizer, KvloomClient())
    rag.ingest(documents)
    answer = rag.generate(question, documents)

Needs the ``[rag]`` extra; importing this package does not load torch until a pipeline is made.
"""

from typing import TYPE_CHECKING, Any

from .documents import Document, DocumentSpan, Prompt, PromptTemplate

if TYPE_CHECKING:
    from .pipeline import Answer, IngestReport, LoadedContext, RagPipeline, Strategy

__all__ = [
    "Answer",
    "Document",
    "DocumentSpan",
    "IngestReport",
    "LoadedContext",
    "Prompt",
    "PromptTemplate",
    "RagPipeline",
    "Strategy",
]

_FROM_PIPELINE = {"Answer", "IngestReport", "LoadedContext", "RagPipeline", "Strategy"}


def __getattr__(name: str) -> Any:
    if name in _FROM_PIPELINE:
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
