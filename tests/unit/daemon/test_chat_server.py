"""What a chat server does while its threads wait."""

import asyncio
import threading

import aiohttp
import pytest
from aiohttp import web

from kvloom import limits
from kvloom.daemon.chat.server import serve_chat


@pytest.fixture
def gate():
    """What answers wait for; opened at the end, so that their threads end."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_as_many_answers_may_wait_as_there_may_be_requests_and_documents_are_read_beside_them(gate):
    held = limits.CHAT_REQUESTS_MAX
    loop, all_wait, inside = asyncio.get_running_loop(), asyncio.Event(), 0

    def note():
        nonlocal inside
        inside += 1
        if inside == held:
            all_wait.set()

    def wait():
        loop.call_soon_threadsafe(note)
        gate.wait(120)

    async def answer(_request):
        await asyncio.to_thread(wait)
        return web.Response(text="answer")

    async def document(_request):
        return web.Response(text=await asyncio.to_thread(lambda: "document"))

    application = web.Application()
    application.add_routes([web.get("/answer", answer), web.get("/document", document)])
    connector = aiohttp.TCPConnector(limit=0)
    async with serve_chat(application, 0) as port, aiohttp.ClientSession(connector=connector) as session:
        answers = [asyncio.create_task(session.get(f"http://127.0.0.1:{port}/answer")) for _ in range(held)]
        async with asyncio.timeout(60):
            await all_wait.wait()
        async with asyncio.timeout(60), session.get(f"http://127.0.0.1:{port}/document") as reply:
            assert await reply.text() == "document"
        gate.set()
        assert {(await task).status for task in answers} == {200}
