"""Which chunks a model's prompts are made of, and where each stands."""

from collections.abc import Iterable
from dataclasses import dataclass

from ... import limits
from ...kvstore.key import ChunkRef, ContentKey, ModelIdentity, chunk_refs
from ..arrivals import ChunkPlace
from .documents import Document, Prompt, PromptTemplate

__all__ = ["Placing"]


@dataclass(frozen=True, slots=True)
class Placing:
    """Names the chunks of one model's prompts; a document's are those of it right after the exact prefix."""

    identity: ModelIdentity
    template: PromptTemplate
    chunk_tokens: int

    @property
    def prefix(self) -> ChunkPlace:
        """The exact prefix: one chunk."""
        refs = chunk_refs(self.identity, self.template.prefix, chunk_tokens=limits.CHUNK_TOKENS_MAX)
        return ChunkPlace(refs[0], 0)

    def document(self, document: Document) -> list[ChunkPlace]:
        """A document's chunks where they were computed."""
        start = len(self.template.prefix)
        ids = self.template.document_tokens(document)
        refs = chunk_refs(self.identity, ids, chunk_tokens=self.chunk_tokens, context=self.prefix.ref.key)
        return [ChunkPlace(ref, start + ref.start) for ref in refs]

    def documents(self, documents: Iterable[Document]) -> dict[ContentKey, ChunkRef]:
        """The chunks of several documents, each once."""
        return {place.ref.key: place.ref for item in documents for place in self.document(item)}

    def blended(self, prompt: Prompt) -> list[ChunkPlace]:
        """The chunks of a prompt's documents where the prompt has them."""
        parent = self.prefix.ref.key
        return [
            ChunkPlace(ref, span.start + ref.start)
            for span in prompt.spans
            for ref in chunk_refs(self.identity, prompt.tokens_of(span), chunk_tokens=self.chunk_tokens, context=parent)
        ]

    def exact(self, prompt: Prompt) -> list[ChunkPlace]:
        """The chunks of the prompt itself, each after all before it."""
        refs = chunk_refs(self.identity, prompt.token_ids, chunk_tokens=self.chunk_tokens)
        return [ChunkPlace(ref, ref.start) for ref in refs]
