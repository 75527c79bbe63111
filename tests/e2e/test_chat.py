"""The chat servers, asked over HTTP: a model of ours over a real daemon, and the proxy before an engine."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack, closing

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from kvloom import limits
from kvloom.clients.rag import Document, Library, RagService
from kvloom.daemon.chat.guard import ChatGuard
from kvloom.daemon.chat.model_api import ModelApi
from kvloom.daemon.chat.proxy_api import ProxyApi
from kvloom.daemon.chat.server import own_key, read_key, serve_chat
from kvloom.errors import ConfigError, InvalidRequest

KEY = "kvl_chat_of_the_tests"
QUESTION = "which number follows?"
ASKED = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}


@pytest.fixture
def library(tmp_path):
    with closing(Library(tmp_path / "library", clock=time.time)) as library:
        yield library


@pytest.fixture
def service(tiny_pipeline, daemon, library):
    with RagService(tiny_pipeline, daemon.client(), library=library) as service:
        yield service


@pytest.fixture
def texts(seed):
    return {f"n{n}": f"Number {n} follows {n - 1}, says {seed}. " * 5 for n in range(1, 4)}


@pytest.fixture
async def stack():
    async with AsyncExitStack() as stack:
        yield stack


async def client_of(stack, application, key=KEY):
    port = await stack.enter_async_context(serve_chat(application, 0))
    headers = {"Authorization": f"Bearer {key}"}
    session = aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers, timeout=aiohttp.ClientTimeout(120))
    return await stack.enter_async_context(session)


@pytest.fixture
async def model(stack, service, library):
    return await client_of(stack, ModelApi(service, library, ChatGuard(KEY), name="tiny").application())


async def put(client, texts):
    told = []
    for name, text in texts.items():
        async with client.put(f"/v1/documents/{name}", json={"text": text, "title": name}) as answer:
            assert answer.status == 200
            told.append(await answer.json())
    return told


async def post(client, body, path="/v1/chat/completions", status=200):
    async with client.post(path, json=body) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json()


async def events(client, body):
    async with client.post("/v1/chat/completions", json={**body, "stream": True}) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        lines = [line async for line in answer.content if line.strip()]
    assert lines[-1] == b"data: [DONE]\n"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


async def test_documents_are_put_once_named_and_blended(model, service, texts):
    told = await put(model, texts)
    assert all(item["ingest"]["stored_tokens"] > 0 for item in told)
    assert (await put(model, texts))[0]["ingest"]["already_stored"] == 1
    body = await post(model, {**ASKED, "model": "tiny", "document_ids": ["n3", "n1"]})
    documents = [Document(texts[name], title=name) for name in ("n3", "n1")]
    expected = await asyncio.to_thread(service.answer, QUESTION, documents, tokens_max=8)
    assert body["choices"][0]["message"]["content"] == expected.answer.text
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == body["kvloom"]["loaded_tokens"] > 0
    inline = {**ASKED, "document_ids": ["n3"], "documents": [{"text": texts["n1"], "title": "n1"}]}
    assert (await post(model, inline))["choices"] == body["choices"]

    pieces = await events(model, {**ASKED, "document_ids": ["n3", "n1"], "stream_options": {"include_usage": True}})
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in pieces[:-1]) == expected.answer.text
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert pieces[-2]["choices"][0]["finish_reason"] == "length"
    assert pieces[-2]["kvloom"]["loaded_tokens"] > 0
    assert pieces[-1]["usage"] == body["usage"]
    seeded = {**ASKED, "document_ids": ["n1"], "temperature": 1.0, "seed": 3}
    assert (await post(model, seeded))["choices"] == (await post(model, seeded))["choices"]


async def test_documents_have_versions_and_go(model, texts):
    await put(model, texts)
    await put(model, {"n1": texts["n1"] + "changed"})
    async with model.get("/v1/documents/n1") as answer:
        found = await answer.json()
    assert found["text"].endswith("changed")
    assert [version["number"] for version in found["versions"]] == [1, 2]
    async with model.get("/v1/documents?after=n1&limit=1") as answer:
        assert [item["id"] for item in (await answer.json())["data"]] == ["n2"]
    async with model.delete("/v1/documents/n1") as answer:
        assert (await answer.json())["deleted"] is True
    for method in (model.get, model.delete):
        async with method("/v1/documents/n1") as answer:
            assert answer.status == 404
    body = await post(model, {**ASKED, "document_ids": ["n1"]}, status=404)
    assert body["error"]["code"] == "not_found"


async def test_what_a_model_server_refuses(model):
    assert "no_such" in (await post(model, {**ASKED, "model": "no_such"}, status=404))["error"]["message"]
    assert (await post(model, {**ASKED, "tools": [{}]}, status=400))["error"]["type"] == "invalid_request_error"
    await post(model, {**ASKED, "stream": True, "max_tokens": 0.5}, status=400)
    nothing = await post(model, {**ASKED, "temperature": 1.0, "top_p": 0}, status=400)
    assert "top_p is 0" in nothing["error"]["message"]
    async with model.post("/v1/chat/completions", data=b"{") as answer:
        assert answer.status == 400
    async with model.get("/v1/documents?limit=x") as answer:
        assert answer.status == 400
    async with model.post("/v1/embeddings", json={}) as answer:
        assert answer.status == 404
    async with model.put("/v1/documents/big", data=b" " * (limits.CHAT_BODY_BYTES_MAX + 1)) as answer:
        assert answer.status == 413
    async with model.get("/v1/models") as answer:
        assert [item["id"] for item in (await answer.json())["data"]] == ["tiny"]


async def test_whoever_goes_away_stops_the_model(model, service, texts):
    await put(model, texts)
    body = {**ASKED, "document_ids": ["n1"], "max_tokens": limits.ANSWER_TOKENS_MAX, "stream": True}
    async with model.post("/v1/chat/completions", json=body) as answer:
        await answer.content.readline()
    # The next one gets the model although the first answer has hundreds of tokens to come.
    assert (await post(model, {**ASKED, "max_tokens": 1}))["usage"]["completion_tokens"] == 1


@pytest.fixture(params=["model", "proxy"])
async def guarded(request, stack, service, library):
    guard = ChatGuard(KEY, requests_max=1)
    if request.param == "model":
        application = ModelApi(service, library, guard, name="tiny").application()
    else:
        application = ProxyApi(library, guard, upstream="http://127.0.0.1:9").application()
    return await client_of(stack, application), guard


async def raw_status(client, header):
    """The status of a request with a header that no client of ours sends."""
    port = URL(client._base_url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/documents HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + header + b"\r\n\r\n")
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


async def test_nobody_without_a_key_no_web_page_and_not_too_many(guarded):
    client, guard = guarded
    async with client.get("/v1/documents") as answer:
        assert answer.status == 200
    for headers in ({"Authorization": "Bearer other"}, {"Authorization": "Basic x"}, {"Authorization": ""}):
        async with client.get("/v1/documents", headers=headers) as answer:
            assert answer.status == 401
    assert await raw_status(client, b"Authorization: Bearer \xff") == 401
    for headers in ({"Host": "evil.example"}, {"Origin": "http://localhost"}, {"Sec-Fetch-Site": "cross-site"}):
        async with client.get("/v1/documents", headers=headers) as answer:
            assert answer.status == 403
    async with client.get("/healthz", headers={"Authorization": ""}) as answer:
        assert answer.status == 200
    guard._inside = 1
    async with client.get("/v1/documents") as answer:
        assert (answer.status, "Retry-After" in answer.headers) == (503, True)


class Engine:
    """What stands behind the proxy: tells what it was asked and answers in pieces, as vLLM does."""

    def __init__(self):
        self.asked = []
        self.first_piece_read = asyncio.Event()
        self.models = b'{"data": [{"id": "engine"}]}'

    def application(self):
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.answer)
        return application

    async def answer(self, request):
        body = await request.read()
        self.asked.append((request.method, request.raw_path, dict(request.headers), body))
        if request.path == "/v1/models":
            return web.Response(body=self.models, content_type="application/json")
        if request.path == "/v1/broken":
            return web.json_response({"error": "of the engine"}, status=418, headers={"X-Own": "told"})
        if b'"stream": true' not in body:
            return web.json_response({"usage": {"prompt_tokens": 12}})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        await asyncio.wait_for(self.first_piece_read.wait(), 60)
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
async def engine():
    return Engine()


@pytest.fixture
async def proxy(stack, engine, library):
    port = await stack.enter_async_context(serve_chat(engine.application(), 0))
    api = ProxyApi(library, ChatGuard(KEY), upstream=f"http://127.0.0.1:{port}", upstream_key="of-the-engine")
    return await client_of(stack, api.application())


async def test_the_proxy_puts_documents_first_and_passes_the_rest(proxy, engine, texts):
    told = await put(proxy, texts)
    assert told[0]["prefilled_tokens"] == 12
    prefill = json.loads(engine.asked[1][3])
    assert (prefill["model"], prefill["max_tokens"]) == ("engine", 1)
    assert prefill["messages"][0]["content"] == f"Documents:\n\nn1\n{texts['n1'].strip()}"
    engine.asked.clear()

    await post(proxy, {**ASKED, "document_ids": ["n2", "n1"], "guided_json": {"type": "object"}})
    method, path, headers, body = engine.asked.pop()
    assert (method, path, headers["Authorization"]) == ("POST", "/v1/chat/completions", "Bearer of-the-engine")
    found = json.loads(body)
    assert found["messages"][0]["content"] == f"Documents:\n\nn2\n{texts['n2'].strip()}\n\nn1\n{texts['n1'].strip()}"
    assert found["messages"][1:] == ASKED["messages"]
    assert set(found) == {"messages", "max_tokens", "guided_json"}

    raw = b'{"messages" : [], "odd":1.0e2}'
    async with proxy.post("/v1/chat/completions?a=b%20c", data=raw, headers={"X-Trace": "t"}) as answer:
        assert answer.status == 200
    assert (engine.asked[-1][1], engine.asked[-1][3]) == ("/v1/chat/completions?a=b%20c", raw), "the very bytes"
    assert engine.asked[-1][2]["X-Trace"] == "t"
    async with proxy.get("/v1/broken") as answer:
        assert (answer.status, answer.headers["X-Own"]) == (418, "told")
        assert await answer.json() == {"error": "of the engine"}


async def test_the_proxy_hands_on_pieces_as_they_come(proxy, engine):
    async with proxy.post("/v1/chat/completions", json={**ASKED, "stream": True}) as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: one\n\n"
        engine.first_piece_read.set()  # the engine goes on only now: nothing was held back
        assert await answer.content.read() == b"data: [DONE]\n\n"


async def test_what_a_proxy_refuses(proxy, engine, stack, library):
    await post(proxy, {**ASKED, "document_ids": ["nobody"]}, status=404)
    await post(proxy, {**ASKED, "document_ids": [1]}, status=400)
    for path in ("/metrics", "/v1/../metrics", "/v1/%2e%2e/metrics"):
        async with proxy.get(URL(path, encoded=True)) as answer:
            assert answer.status == 400, path
    assert not engine.asked
    for upstream in ("ftp://x", "http://x/v1", "x:80"):
        with pytest.raises(InvalidRequest, match="must be http"):
            ProxyApi(library, ChatGuard(KEY), upstream=upstream)
    gone = await client_of(stack, ProxyApi(library, ChatGuard(KEY), upstream="http://127.0.0.1:9").application())
    assert (await post(gone, ASKED, status=503))["error"]["code"] == "storage_unavailable"
    async with gone.put("/v1/documents/kept", json={"text": "kept all the same"}) as answer:
        assert "does not answer" in (await answer.json())["prefill_failed"]
    async with proxy.get("/v1/documents/kept") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "models",
    [b"<html>", b"[1]", b'{"data": []}', b'{"data": {}}', b"x" * (limits.CHAT_BODY_BYTES_MAX + 1)],
    ids=["html", "list", "none", "object", "endless"],
)
async def test_an_engine_that_answers_nonsense_costs_the_prefill_only(proxy, engine, models):
    engine.models = models
    async with proxy.put("/v1/documents/kept", json={"text": "kept all the same"}) as answer:
        assert answer.status == 200
        assert "the engine" in (await answer.json())["prefill_failed"]
    engine.models = b'{"data": [{"id": "engine"}], "odd": "' + b"x" * 300_000 + b'"}'
    async with proxy.put("/v1/documents/again", json={"text": "an answer that comes in pieces"}) as answer:
        assert (await answer.json())["prefilled_tokens"] == 12


def test_keys_of_their_own(tmp_path):
    path = tmp_path / "new" / "key"
    key = own_key(path)
    assert read_key(path) == key != own_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "empty").touch()
    for name in ("empty", "none"):
        with pytest.raises(ConfigError, match="key file"):
            read_key(tmp_path / name)


def start_command(*arguments, data_dir):
    environ = {**os.environ, "KVLOOM_DATA_DIR": str(data_dir)}
    return subprocess.Popen(
        [sys.executable, "-m", "kvloom.daemon.cli", *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


async def ready_of(process):
    said = []
    while not (found := re.search(r"ready: (http://\S+)/v1", said[-1] if said else "")):
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, said
        said.append(line)
    return found[1], next(line for line in said if line.startswith("key: ")).removeprefix("key: ").strip()


async def test_the_proxy_as_a_command(stack, engine, tmp_path):
    port = await stack.enter_async_context(serve_chat(engine.application(), 0))
    process = start_command("proxy", f"http://127.0.0.1:{port}", "--port", "0", data_dir=tmp_path / "of-proxy")
    try:
        url, key_file = await ready_of(process)
        headers = {"Authorization": f"Bearer {read_key(tmp_path / key_file)}"}
        async with aiohttp.ClientSession(url, headers=headers) as session, session.get("/v1/models") as answer:
            assert (await answer.json())["data"] == [{"id": "engine"}]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_smollm2_as_a_command(start_daemon, tmp_path):
    daemon = start_daemon()
    process = start_command(
        "serve-model", "smollm2", "--port", "0", "--library", str(tmp_path / "library"), data_dir=daemon.data_dir
    )
    try:
        url, key_file = await ready_of(process)
        headers = {"Authorization": f"Bearer {read_key(tmp_path / key_file)}"}
        timeout = aiohttp.ClientTimeout(600)
        async with aiohttp.ClientSession(url, headers=headers, timeout=timeout) as session:
            text = "The kettle stands in the left cupboard, behind the blue cups. " * 2
            await put(session, {"kitchen": text})
            asked = {"messages": [{"role": "user", "content": "Where does the kettle stand?"}], "max_tokens": 12}
            body = await post(session, {**asked, "document_ids": ["kitchen"]})
            assert "cupboard" in body["choices"][0]["message"]["content"]
            assert body["model"] == "smollm2"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
        process.wait()
