"""One HTTP request and one whole reply, as the protocol sees them: no sockets, no library."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Buffer", "HttpReply", "HttpRequest"]

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request; ``headers`` come on top of Host, Content-Length and Connection, which the client adds."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: Buffer = b""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One whole reply; the keys of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: Buffer
