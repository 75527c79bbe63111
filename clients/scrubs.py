"""A scrub of the daemon's SSD tier that somebody asked for: the record on the wire, and the operations."""
# ruff: noqa: D102 - what request() and parse() promise is said once, in Operation

from dataclasses import dataclass
from typing import ClassVar

from .http_message import HttpReply, HttpRequest
from .protocol import Operation, read_reply
from .reports import Question

__all__ = ["GetScrub", "ScrubReport", "StartScrub"]


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """How far the last scrub that was asked for has come. Nothing is kept over a restart.

    ``number`` counts them since the daemon started, 0 where nobody has asked for one. ``total_bytes`` is what the tier
    held when it began: what is put or evicted meanwhile is not in it. Damaged records have been deleted. ``failure``
    says why one ended early.
    """

    number: int
    running: bool
    records: int
    size_bytes: int
    total_bytes: int
    damaged: int
    seconds: float
    failure: str | None = None


class GetScrub(Question[ScrubReport]):
    """How far the last one has come."""

    target, kind = "/scrub", ScrubReport


class StartScrub(Operation[ScrubReport]):
    """Begin one, unless one is under way; how that one stands. Asking twice is asking once while it lasts."""

    repeatable: ClassVar[bool] = False

    def request(self) -> HttpRequest:
        return HttpRequest("POST", "/scrub", {})

    def parse(self, reply: HttpReply) -> ScrubReport:
        return read_reply(ScrubReport, reply)
