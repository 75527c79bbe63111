"""The heads of HTTP/1.1 messages, without I/O: one request's as bytes, one reply's out of them.

What :mod:`http.client` does in ten times as long: it reads a reply's head as if it were an e-mail's. A reply must say
how long its body is (a daemon always does); one in pieces (``Transfer-Encoding``) has no length here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .. import limits
from ..errors import InvalidData, InvalidRequest

__all__ = ["HEAD_END", "ReplyHead", "host_header", "parse_head", "request_head"]

HEAD_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n]*)?")
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_TARGET: Final = re.compile(r"/[!-~]*")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")
_DIGITS: Final = re.compile(r"[0-9]{1,15}")
_WITHOUT_BODY: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """A status, headers by their names in lower case, and what follows; ``length`` is None where nobody says."""

    status: int
    headers: Mapping[str, str]
    length: int | None
    closes: bool
    """Whether the connection ends with this reply."""

    @property
    def is_interim(self) -> bool:
        """Whether the reply itself is still to come."""
        return self.status < 200


def host_header(host: str, port: int) -> str:
    """``host`` and ``port`` as a Host header names them."""
    name = host.encode("idna").decode() if not host.isascii() else host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def request_head(method: str, target: str, host: str, headers: Mapping[str, str], body_bytes: int) -> bytes:
    """The head of a request with a body of ``body_bytes``; :class:`InvalidRequest` for what would be no such head."""
    if not _TARGET.fullmatch(target):
        raise InvalidRequest(f"request target {target[:80]!r} has characters that no target has")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
    if body_bytes or method not in ("GET", "HEAD", "DELETE"):
        lines.append(f"Content-Length: {body_bytes}")
    for name, value in headers.items():
        if not _VALUE.fullmatch(value):
            raise InvalidRequest(f"header {name} has a value with characters that no header has")
        lines.append(f"{name}: {value}")
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def parse_head(data: bytes) -> ReplyHead:
    """A reply's head, up to and without :data:`HEAD_END`; :class:`InvalidData` for what is none."""
    first, *lines = data.decode("latin-1").split("\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise InvalidData(f"{first[:80]!r} is no status line of HTTP/1.1")
    if len(lines) > limits.REQUEST_HEADERS_MAX:
        raise InvalidData(f"reply has {len(lines)} headers, the limit is {limits.REQUEST_HEADERS_MAX}")
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise InvalidData(f"{line[:80]!r} is no header")
        name = field[1].lower()
        if name == "content-length" and headers.get(name, field[2]) != field[2]:
            raise InvalidData("reply declares two lengths")
        headers[name] = f"{headers[name]}, {field[2]}" if name in headers and name != "content-length" else field[2]
    options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    closes = "close" in options or (status[1] == "0" and "keep-alive" not in options)
    return ReplyHead(int(status[2]), headers, _length(int(status[2]), headers), closes)


def _length(status: int, headers: Mapping[str, str]) -> int | None:
    if status in _WITHOUT_BODY:
        return 0
    if "transfer-encoding" in headers:
        return None
    text = headers.get("content-length", "")
    return int(text) if _DIGITS.fullmatch(text) else None
