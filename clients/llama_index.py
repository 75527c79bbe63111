"""LlamaIndex: a node postprocessor that has documents ready, and a language model that answers from their KV.

    llm = KvloomLLM(service=rag)
    nodes = KvloomPostprocessor(service=rag).postprocess_nodes(retriever.retrieve(question), query_str=question)
    llm.complete(question, nodes=nodes).text

Nodes go to the model beside the question: in the text they could not be told from it. Needs the
``[llama-index]`` extra.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from pydantic import ConfigDict

from .rag import Document, RagService
from .rag.decoding import Decoding
from .rag.pipeline import Strategy
from .rag.streaming import Answered

__all__ = ["KvloomLLM", "KvloomPostprocessor", "documents_of"]


def documents_of(nodes: Iterable[NodeWithScore | BaseNode]) -> list[Document]:
    """The documents that nodes stand for: their text and, where their metadata has one, their title."""
    found = [item.node if isinstance(item, NodeWithScore) else item for item in nodes]
    return [
        Document(text=node.get_content(MetadataMode.NONE), title=str(node.metadata.get("title", ""))) for node in found
    ]


class KvloomPostprocessor(BaseNodePostprocessor):
    """Hands on the nodes as they are, after their KV was sent on its way to where the model needs it.

    With ``ingest`` those that are not stored are ingested in the background, for the next question.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    service: RagService
    ingest: bool = False

    @classmethod
    def class_name(cls) -> str:
        """As LlamaIndex names components."""
        return "KvloomPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        documents = documents_of(nodes)
        self.service.warm(documents)
        if self.ingest and documents:
            self.service.ingest_later(documents)
        return nodes


class KvloomLLM(CustomLLM):
    """A language model over :class:`RagService`; ``nodes`` of a call are what its prompt asks about.

    ``temperature`` 0 is greedy. What an answer cost stands in ``additional_kwargs["kvloom"]`` of the response.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    service: RagService
    strategy: Strategy = Strategy.BLEND
    tokens_max: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    @classmethod
    def class_name(cls) -> str:
        """As LlamaIndex names components."""
        return "KvloomLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex fits its prompts into."""
        config = self.service.pipeline.model.config
        return LLMMetadata(
            context_window=int(getattr(config, "max_position_embeddings", 0) or 2048),
            num_output=self.tokens_max,
            model_name=str(getattr(config, "_name_or_path", "") or "kvloom"),
        )

    def complete(
        self, prompt: str, formatted: bool = False, *, nodes: Sequence[NodeWithScore | BaseNode] = (), **kwargs: Any
    ) -> CompletionResponse:
        """Answer ``prompt`` from ``nodes``."""
        return _response(self.service.answer(prompt, documents_of(nodes), **self._options(kwargs)), "")

    def stream_complete(
        self, prompt: str, formatted: bool = False, *, nodes: Sequence[NodeWithScore | BaseNode] = (), **kwargs: Any
    ) -> CompletionResponseGen:
        """The same piece by piece; the last response says what it cost."""
        options, documents = self._options(kwargs), documents_of(nodes)

        def pieces() -> CompletionResponseGen:
            text = ""
            with self.service.stream(prompt, documents, **options) as stream:
                for piece in stream:
                    text += piece
                    yield CompletionResponse(text=text, delta=piece)
                yield _response(stream.answered, "")

        return pieces()

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the service is asked for, of the model's own settings and the call's."""
        temperature = float(given.get("temperature", self.temperature))
        return {
            "strategy": self.strategy,
            "tokens_max": int(given.get("max_tokens", self.tokens_max)),
            "decoding": Decoding.at(temperature, top_p=self.top_p, seed=self.seed),
        }


def _response(answered: Answered, delta: str) -> CompletionResponse:
    metrics = answered.metrics
    return CompletionResponse(text=answered.answer.text, delta=delta, additional_kwargs={"kvloom": asdict(metrics)})
