"""One HTTP request and one whole reply, as the protocol sees them: no sockets, no library."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..codec.container import ContainerHeader

__all__ = ["Body", "Buffer", "HttpReply", "HttpRequest"]

Buffer = bytes | bytearray | memoryview
Body = Buffer | tuple[Buffer, ...]
"""One buffer, or several that are sent one behind the other."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request; ``headers`` come on top of Host, Content-Length and Connection, which the client adds."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: Body = b""

    @property
    def parts(self) -> tuple[Buffer, ...]:
        """The body as what is sent, without empty ones."""
        parts = self.body if isinstance(self.body, tuple) else (self.body,)
        return tuple(part for part in parts if len(part))


@dataclass(frozen=True, slots=True)
class HttpReply:
    """One whole reply; the keys of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: Buffer
    verified: ContainerHeader | None = None
    """Of a body that is a container and was verified while it came."""
    word_sum: int | None = None
    """What the words of the body must add up to, by the word of a daemon on this machine (:mod:`.summed`)."""
    summed: int | None = None
    """What they do add up to, where that was seen while they came."""
