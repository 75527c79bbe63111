"""Asking for a plan and reporting what came of it, as operations (:mod:`.protocol`)."""
# ruff: noqa: D102 - what request(), parse() and without_daemon() promise is said once, in Operation

from dataclasses import dataclass
from typing import ClassVar, Final

from .. import limits
from ..errors import DaemonUnavailable
from . import plan_wire
from .http_message import HttpReply, HttpRequest
from .protocol import Operation, post, read_reply

__all__ = ["AskPlan", "SendReport"]

_BUSY: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class AskPlan(Operation[plan_wire.PlanReply | None]):
    """A plan for a prompt; ``None`` where the daemon cannot say: everything is computed then."""

    retry_seconds_max: ClassVar[float] = limits.RETRY_READ_SECONDS_MAX
    question: plan_wire.PlanQuestion

    def request(self) -> HttpRequest:
        return post("/plan", self.question)

    def parse(self, reply: HttpReply) -> plan_wire.PlanReply | None:
        return None if reply.status in _BUSY else read_reply(plan_wire.PlanReply, reply)

    def without_daemon(self, error: DaemonUnavailable) -> plan_wire.PlanReply | None:
        return None


@dataclass(frozen=True, slots=True)
class SendReport(Operation[int]):
    """What things took in an engine; how many of the measurements were taken in. Not tried twice: it would count so."""

    repeatable: ClassVar[bool] = False
    retry_seconds_max: ClassVar[float] = limits.RETRY_READ_SECONDS_MAX
    report: plan_wire.EngineReport

    def request(self) -> HttpRequest:
        return post("/report", self.report)

    def parse(self, reply: HttpReply) -> int:
        return 0 if reply.status in _BUSY else read_reply(plan_wire.ReportReply, reply).accepted

    def without_daemon(self, error: DaemonUnavailable) -> int:
        return 0
