"""A chat application on a loopback port, until it is told to stop; its key in a file of its user's."""

import asyncio
import base64
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from aiohttp import web

from ... import limits
from ...errors import ConfigError
from ...kvstore.atomic_file import replace_file
from ...kvstore.key import KEY_BYTES
from ..http_server import bind_http

__all__ = ["own_key", "read_key", "run_chat", "serve_chat"]

LOOPBACK: Final = "127.0.0.1"
_CLOSE_SECONDS_MAX: Final = 5.0


def read_key(path: Path) -> str:
    """The key in ``path``: its first line. Raises :class:`ConfigError` where there is none."""
    try:
        with path.open("rb") as file:
            key = file.readline(limits.CREDENTIAL_CHARS_MAX + 2).strip().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"key file {path} cannot be read: {error}") from error
    if not key or len(key) > limits.CREDENTIAL_CHARS_MAX:
        raise ConfigError(f"key file {path} has no key of 1 to {limits.CREDENTIAL_CHARS_MAX} characters")
    return key


def own_key(path: Path) -> str:
    """A new key, which only this user's programs can read from ``path``."""
    key = f"kvl_chat_{base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).rstrip(b'=').decode()}"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(path, f"{key}\n".encode())
    return key


@asynccontextmanager
async def serve_chat(application: web.Application, port: int) -> AsyncIterator[int]:
    """Serve while the context lasts, on ``port`` of loopback (0: any); gives the port.

    The event loop's threads are from now on as many as there may be requests: on its own few, answers that wait for
    the model would hold up everything else, documents first.
    """
    threads = ThreadPoolExecutor(limits.CHAT_THREADS_MAX, thread_name_prefix="kvloom-chat")
    asyncio.get_running_loop().set_default_executor(threads)
    listener = bind_http(LOOPBACK, port)
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=_CLOSE_SECONDS_MAX,
        keepalive_timeout=limits.KEEPALIVE_SECONDS_MAX,
        max_line_size=limits.REQUEST_LINE_BYTES_MAX,
        max_field_size=limits.REQUEST_HEADER_BYTES_MAX,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=limits.CHAT_REQUESTS_MAX).start()
        yield int(listener.getsockname()[1])
    finally:
        await runner.cleanup()


async def run_chat(application: web.Application, port: int, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; ``ready`` is told the port once there is one."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, stopped.set)
    async with serve_chat(application, port) as bound:
        ready(bound)
        await stopped.wait()
