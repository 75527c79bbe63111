"""LangChain and LlamaIndex, the real packages, over a real daemon."""

import functools

import pytest

pytest.importorskip("langchain_core", reason="the langchain extra")
pytest.importorskip("llama_index.core", reason="the llama-index extra")

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from kvloom.clients.langchain import KvloomChat, KvloomRetriever
from kvloom.clients.llama_index import KvloomLLM, KvloomPostprocessor, documents_of
from kvloom.clients.rag import Document, RagService
from kvloom.errors import InvalidRequest

QUESTION = "which number follows?"

langchain = functools.partial(
    pytest.mark.feature,
    "LangChain",
    package="langchain-core",
    how="the real package over a tiny model and a real daemon",
)
llama_index = functools.partial(
    pytest.mark.feature,
    "LlamaIndex",
    package="llama-index-core",
    how="the real package over a tiny model and a real daemon",
)


@pytest.fixture
def service(tiny_pipeline, daemon):
    with RagService(tiny_pipeline, daemon.client()) as service:
        yield service


@pytest.fixture
def documents(seed):
    return [Document(f"Number {n} follows {n - 1}, says {seed}. " * 5, title=f"number {n}") for n in range(1, 4)]


class Fixed(BaseRetriever):
    """Finds the same documents for every question."""

    documents: list[LangChainDocument]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


@pytest.fixture
def retrieved(documents):
    return [LangChainDocument(page_content=item.text, metadata={"title": item.title}) for item in documents]


@langchain("retriever and chat model: documents are answered from stored KV")
def test_langchain_answers_from_stored_kv(service, documents, retrieved):
    service.ingest(documents)
    found = KvloomRetriever(service=service, retriever=Fixed(documents=retrieved)).invoke("which?")
    assert found == retrieved
    chat = KvloomChat(service=service, tokens_max=10)
    message = chat.invoke([HumanMessage(QUESTION, additional_kwargs={"documents": found})])
    assert message.content == service.answer(QUESTION, documents, tokens_max=10).answer.text
    assert message.usage_metadata["output_tokens"] == 10
    assert message.response_metadata["kvloom"]["loaded_tokens"] > 0
    bound = chat.bind(documents=documents)
    assert bound.invoke(QUESTION).content == message.content, "documents of either kind, with the message or the call"
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])
    assert (prompt | bound).invoke({"question": QUESTION}).content == message.content


@langchain("chat model: streaming")
def test_langchain_streams(service, documents):
    service.ingest(documents)
    chat = KvloomChat(service=service, tokens_max=10).bind(documents=documents)
    chunks = list(chat.stream(QUESTION))
    assert len([chunk for chunk in chunks if chunk.content]) > 1
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == chat.invoke(QUESTION).content
    assert whole.response_metadata["kvloom"]["answer_tokens"] == 10


@langchain("chat model: async and async streaming")
async def test_langchain_awaited(service, documents):
    service.ingest(documents)
    chat = KvloomChat(service=service, tokens_max=6).bind(documents=documents)
    text = (await chat.ainvoke(QUESTION)).content
    assert "".join([chunk.content async for chunk in chat.astream(QUESTION)]) == text


def test_langchain_has_what_it_retrieved_ingested_for_next_time(service, documents, retrieved):
    retriever = KvloomRetriever(service=service, retriever=Fixed(documents=retrieved), ingest=True)
    retriever.invoke("which?")
    service.ingest_later(documents, priority=99).wait(120)  # after what the retriever has begun
    assert service.warm(documents) == sum(len(service.pipeline.document_keys(item)) for item in documents)


def test_langchain_says_what_it_cannot_do(service):
    chat = KvloomChat(service=service)
    with pytest.raises(InvalidRequest, match="2 messages were given"):
        chat.invoke([AIMessage("hello"), HumanMessage("and?")])
    with pytest.raises(InvalidRequest, match="stop sequences"):
        chat.invoke(QUESTION, stop=["\n"])
    with pytest.raises(InvalidRequest, match="temperature is 3"):
        chat.invoke(QUESTION, temperature=3)


@llama_index("node postprocessor and LLM: nodes are answered from stored KV, streaming")
def test_llama_index_answers_from_stored_kv(service, documents):
    service.ingest(documents)
    nodes = [
        NodeWithScore(node=TextNode(text=item.text, metadata={"title": item.title}), score=1.0) for item in documents
    ]
    assert documents_of(nodes) == documents
    postprocessor = KvloomPostprocessor(service=service)
    assert postprocessor.postprocess_nodes(nodes, query_bundle=QueryBundle(QUESTION)) == nodes
    llm = KvloomLLM(service=service, tokens_max=10)
    response = llm.complete(QUESTION, nodes=nodes)
    assert response.text == service.answer(QUESTION, documents, tokens_max=10).answer.text
    assert response.additional_kwargs["kvloom"]["loaded_tokens"] > 0
    pieces = list(llm.stream_complete(QUESTION, nodes=nodes))
    assert "".join(piece.delta for piece in pieces) == pieces[-1].text == response.text
    assert llm.metadata.num_output == 10
    assert llm.chat([ChatMessage(role="user", content=QUESTION)]).message.content
