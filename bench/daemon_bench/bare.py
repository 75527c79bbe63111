"""gRPC in Python with nothing of kvloom: a server that streams frames of 1 MiB, and a client that drops them.

What this reaches, over Redis in the same run, is what a daemon over gRPC could at most: nothing is looked up, gathered
or verified. Two servers, one on an event loop, as the daemon's, one of threads; the client receives in the thread that
asks, as kvloom's. Run as a program, a server: python bench/daemon_bench/bare.py aio|threads
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import grpc.aio
import psutil

__all__ = ["BARE", "download", "running_bare"]

BARE: Final = {"bare grpc.aio": "aio", "bare grpc": "threads"}
"""Subjects, and the server of each."""
SCHEME: Final = "bare://"
_FRAME_BYTES: Final = 1024 * 1024
_METHOD: Final = "/bare/Get"
_OPTIONS: Final = (
    ("grpc.http2.max_frame_size", _FRAME_BYTES),
    ("grpc.http2.lookahead_bytes", 2 * _FRAME_BYTES),
    ("grpc.max_receive_message_length", 2 * _FRAME_BYTES),
    ("SingleThreadedUnaryStream", 1),
)
_FRAME: Final = os.urandom(_FRAME_BYTES)


@contextlib.contextmanager
def running_bare(kind: str) -> Iterator[tuple[psutil.Process, str]]:
    """A server of ``kind``, and its address."""
    process = subprocess.Popen([sys.executable, __file__, kind], stdout=subprocess.PIPE, text=True)
    try:
        port = process.stdout.readline().strip() if process.stdout else ""
        if not port:
            raise SystemExit(f"the bare {kind} server did not start")
        yield psutil.Process(process.pid), f"{SCHEME}127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def download(address: str, value_bytes: int) -> Callable[[], int]:
    """What reads ``value_bytes`` once each time it is called; how many came."""
    channel: Any = grpc.insecure_channel(address.removeprefix(SCHEME), options=_OPTIONS)

    def read() -> int:
        count = sum(len(message) for message in channel.unary_stream(_METHOD)(b"%d" % value_bytes))
        if count != value_bytes:
            raise RuntimeError(f"{count} bytes came, not {value_bytes}")
        return count

    return read


def frames(question: bytes) -> list[bytes]:
    """The answer: as many bytes as were asked for."""
    whole, rest_bytes = divmod(int(question), _FRAME_BYTES)
    return [_FRAME] * whole + ([_FRAME[:rest_bytes]] if rest_bytes else [])


def handlers(behaviour: Callable[..., Any]) -> tuple[grpc.GenericRpcHandler]:
    """``behaviour`` as the one method there is."""
    method = grpc.unary_stream_rpc_method_handler(behaviour)
    package, name = _METHOD.strip("/").split("/")
    return (grpc.method_handlers_generic_handler(package, {name: method}),)


async def serve_aio() -> None:
    """Serve on an event loop until terminated."""

    async def stream(question: bytes, _: object) -> AsyncIterator[bytes]:
        for frame in frames(question):
            yield frame

    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(handlers(stream))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


def serve_threads() -> None:
    """Serve with threads until terminated."""
    server = grpc.server(ThreadPoolExecutor(16), options=_OPTIONS)
    server.add_generic_rpc_handlers(handlers(lambda question, _: iter(frames(question))))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve_aio()) if sys.argv[1] == "aio" else serve_threads()
