"""LangChain: a retriever whose documents are ready in the daemon, and a chat model that answers from their KV.

    chat = KvloomChat(service=rag)
    retriever = KvloomRetriever(service=rag, retriever=any_retriever)
    chat.invoke([HumanMessage("Where is the kettle?", additional_kwargs={"documents": retriever.invoke("kettle")})])

Documents go to the model beside the messages, under ``documents`` of the last message's ``additional_kwargs`` or of the
call (``chat.bind(documents=...)``): in the text they could not be told from the question. Needs the ``[langchain]``
extra.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document as LangChainDocument
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from ..errors import InvalidRequest
from .rag import Document, RagService
from .rag.async_service import AsyncRagService
from .rag.decoding import Decoding
from .rag.pipeline import Strategy
from .rag.streaming import Answered

__all__ = ["KvloomChat", "KvloomRetriever"]


class KvloomRetriever(BaseRetriever):
    """Any retriever's documents, whose KV is on its way to where the model needs it when they are handed over.

    ``service`` must have been given these documents' texts (:meth:`RagService.ingest`); with ``ingest`` those that it
    was not are ingested in the background, for the next question.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    service: RagService
    retriever: BaseRetriever
    ingest: bool = False

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[LangChainDocument]:
        found = self.retriever.invoke(query, config={"callbacks": run_manager.get_child()})
        documents = [_ours(item) for item in found]
        self.service.warm(documents)
        if self.ingest and documents:
            self.service.ingest_later(documents)
        return found


class KvloomChat(BaseChatModel):
    """A chat model over :class:`RagService`: one question, its documents, and the KV that is stored of them.

    The conversation is the last human message: earlier ones are refused, as what is stored does not follow them.
    ``temperature`` 0 is greedy. What an answer cost stands in ``response_metadata["kvloom"]``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    service: RagService
    strategy: Strategy = Strategy.BLEND
    tokens_max: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    @property
    def _llm_type(self) -> str:
        return "kvloom"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question, documents = _asked(messages, stop, kwargs)
        return _result(self.service.answer(question, documents, **self._options(kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        question, documents = _asked(messages, stop, kwargs)
        return _result(await AsyncRagService(self.service).answer(question, documents, **self._options(kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        question, documents = _asked(messages, stop, kwargs)
        with self.service.stream(question, documents, **self._options(kwargs)) as stream:
            for piece in stream:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield _last_chunk(stream.answered)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        question, documents = _asked(messages, stop, kwargs)
        async with AsyncRagService(self.service).stream(question, documents, **self._options(kwargs)) as stream:
            async for piece in stream:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            yield _last_chunk(stream.answered)

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the service is asked for, of the model's own settings and the call's."""
        temperature = float(given.get("temperature", self.temperature))
        return {
            "strategy": self.strategy,
            "tokens_max": int(given.get("max_tokens", self.tokens_max)),
            "decoding": Decoding.at(temperature, top_p=self.top_p, seed=self.seed),
        }


def _ours(document: LangChainDocument) -> Document:
    return Document(text=document.page_content, title=str(document.metadata.get("title", "")))


def _asked(
    messages: Sequence[BaseMessage], stop: Sequence[str] | None, given: dict[str, Any]
) -> tuple[str, list[Document]]:
    """The question and its documents; :class:`InvalidRequest` for what cannot be answered from stored KV."""
    if stop:
        raise InvalidRequest("stop sequences are not supported: an answer ends with the model's turn")
    if len(messages) != 1 or not isinstance(messages[0], HumanMessage) or not isinstance(messages[0].content, str):
        raise InvalidRequest(
            f"{len(messages)} messages were given; needed is one human message of text, with its documents beside it"
        )
    documents = given.get("documents", messages[0].additional_kwargs.get("documents", ()))
    return messages[0].content, [item if isinstance(item, Document) else _ours(item) for item in documents]


def _metadata(answered: Answered) -> tuple[dict[str, Any], UsageMetadata]:
    metrics = answered.metrics
    prompt, answer = metrics.prompt_tokens, metrics.answer_tokens
    usage = UsageMetadata(input_tokens=prompt, output_tokens=answer, total_tokens=prompt + answer)
    return {"kvloom": asdict(metrics)}, usage


def _result(answered: Answered) -> ChatResult:
    told, usage = _metadata(answered)
    message = AIMessage(content=answered.answer.text, response_metadata=told, usage_metadata=usage)
    return ChatResult(generations=[ChatGeneration(message=message)])


def _last_chunk(answered: Answered) -> ChatGenerationChunk:
    told, usage = _metadata(answered)
    return ChatGenerationChunk(
        message=AIMessageChunk(content="", response_metadata=told, usage_metadata=usage, chunk_position="last")
    )
