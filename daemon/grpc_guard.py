"""What every gRPC call passes on its way in and out: who asks, its error as a status, its figures.

The same calls, scopes, credentials and errors as over HTTP (:mod:`.call`, :mod:`kvloom.errors`). An error comes as its
gRPC status with its one line, its code in the trailer ``kvloom-error``, and ``google.rpc.Status`` details (ErrorInfo,
and RetryInfo where it helps to try again). Web pages cannot speak gRPC: there is no Host or Origin to check.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from .. import limits
from ..clients import wire
from ..clients.grpc_calls import ERROR_TRAILER, RETRY_TRAILER
from ..errors import BodyTooLarge, InvalidRequest, KvloomError, NotFound, Overloaded, StorageUnavailable, TruncatedBody
from ..tracing import Role, recording, span
from .authenticator import Authenticator
from .call import OPEN, Call
from .caller import Caller, Scope
from .grpc_shares import GrpcShares
from .metrics import Metrics
from .service import Service

__all__ = ["GrpcGuard", "GrpcStream"]

Context = grpc.aio.ServicerContext[bytes, bytes]
Handler = Callable[["GrpcStream", Caller], Awaitable[None]]
_STATUS: Final = {status.name: status for status in grpc.StatusCode}
_DETAILS: Final = "grpc-status-details-bin"
_DOMAIN: Final = "kvloom"
_RETRY_SECONDS: Final = 1
_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{limits.REQUEST_ID_CHARACTERS_MAX}}}")
_log = structlog.get_logger("kvloom.grpc")


@dataclass(frozen=True, slots=True)
class GrpcStream:
    """The messages of one call, in and out, each with a limit and a bounded wait."""

    context: Context

    async def read(self, limit: int) -> bytes | None:
        """The next message, ``None`` after the last; :class:`BodyTooLarge` for one of more than ``limit`` bytes.

        Raises :class:`TruncatedBody` where none comes for :data:`limits.PROGRESS_SECONDS_MAX`.
        """
        try:
            async with asyncio.timeout(limits.PROGRESS_SECONDS_MAX):
                message: object = await self.context.read()
        except TimeoutError as error:
            raise TruncatedBody(f"no message came for {limits.PROGRESS_SECONDS_MAX} s") from error
        if not isinstance(message, bytes):
            return None
        if len(message) > limit:
            raise BodyTooLarge(f"message has {len(message)} bytes, the limit is {limit}")
        return message

    async def question(self, limit: int) -> bytes:
        """The one message of a call that has one."""
        message = await self.read(limit)
        if message is None:
            raise InvalidRequest("the call has no message")
        return message

    async def write(self, message: bytes) -> None:
        """Send a message; returns once there is room for another.

        A client that takes nothing for :data:`limits.PROGRESS_SECONDS_MAX` loses the call: :class:`Overloaded`.
        """
        try:
            async with asyncio.timeout(limits.PROGRESS_SECONDS_MAX):
                await self.context.write(message)
        except TimeoutError as error:
            raise Overloaded(f"client took no message for {limits.PROGRESS_SECONDS_MAX} s") from error


@dataclass(frozen=True, slots=True)
class GrpcGuard:
    """Finds the caller of every call, turns every error into its status, counts and logs."""

    service: Service
    metrics: Metrics
    authenticator: Authenticator
    shares: GrpcShares

    def around(self, call: Call, handler: Handler) -> Callable[[object, Context], Awaitable[None]]:
        """``handler`` as a gRPC behaviour of bytes in and bytes out."""

        async def guarded(_: object, context: Context) -> None:
            started = time.perf_counter()
            request_id = _request_id(context)
            work = self.service.journal.requests.begin()
            structlog.contextvars.clear_contextvars()
            structlog.contextvars.bind_contextvars(request_id=request_id)
            carrier = _headers(context) if recording() else None
            with span(f"grpc {call.name.lower()}", role=Role.SERVER, carrier=carrier) as answering:
                if answering.trace_id:
                    structlog.contextvars.bind_contextvars(trace_id=answering.trace_id)
                error = await self._answer(call, handler, context)
                status = "OK" if error is None else error.grpc_status
                answering.set("rpc.grpc.status", status)
            seconds = time.perf_counter() - started
            self.metrics.observe_call(call.name.lower(), status, seconds)
            self.service.journal.requests.finish(work, request_id, "grpc", call.name.lower(), status, seconds)
            _log.debug("call", call=call.name.lower(), status=status, seconds=seconds)
            trailers = ((wire.HEADER_REQUEST_ID.lower(), request_id),)
            if error is None:
                context.set_trailing_metadata(trailers)
            else:
                with self.shares.lingering() as may:
                    if may:
                        await _linger(context)
                await context.abort(_STATUS[status], str(error), (*trailers, *_trailers(error, str(error))))

        return guarded

    async def _answer(self, call: Call, handler: Handler, context: Context) -> KvloomError | None:
        """Serve a call; what it failed with."""
        try:
            caller = self._admit(call, context)
            with ExitStack() as held:
                if call.needs is not OPEN:
                    held.enter_context(self.shares.calling(caller.tenant, context.peer()))
                if call.admitted:
                    held.enter_context(self.service.entering(caller))
                await handler(GrpcStream(context), caller)
        except KvloomError as error:
            say = _log.debug if isinstance(error, NotFound) else _log.info
            say("refused", call=call.name.lower(), error=error.code, message=str(error))
            return error
        except (grpc.aio.BaseError, grpc.RpcError, ConnectionError) as error:
            return StorageUnavailable(f"the call broke off: {error}")
        except Exception as error:  # noqa: BLE001 - the edge: whatever fails inside is logged and answered, never shown
            _log.error("call failed", call=call.name.lower(), exc_info=error)
            return KvloomError("internal error; the daemon's log has it by this request id")
        return None

    def _admit(self, call: Call, context: Context) -> Caller:
        if call.needs is OPEN:
            return self.authenticator.local  # it is given to no handler that looks at it
        metadata = context.invocation_metadata() or ()
        values = [value for name, value in metadata if name == "authorization"]
        caller = self.authenticator.by_header([value for value in values if isinstance(value, str)])
        if isinstance(call.needs, Scope):
            caller.require(call.needs)
        return caller


async def _linger(context: Context) -> None:
    """Read on for a while after a refusal: clients that are still sending would see a broken call, and not why."""
    with suppress(TimeoutError, grpc.aio.BaseError):
        async with asyncio.timeout(limits.REFUSED_BODY_SECONDS_MAX):
            message: object = b""
            while isinstance(message, bytes):
                message = await context.read()


def _trailers(error: KvloomError, message: str) -> list[tuple[str, str | bytes]]:
    """What a client may know of an error beside its status."""
    details = [error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=_DOMAIN)]
    trailers: list[tuple[str, str | bytes]] = [(ERROR_TRAILER, error.code)]
    if error.http_status in (429, 503):
        trailers.append((RETRY_TRAILER, str(_RETRY_SECONDS * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=_RETRY_SECONDS)))
    status = status_pb2.Status(code=_STATUS[error.grpc_status].value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return [*trailers, (_DETAILS, status.SerializeToString())]


def _headers(context: Context) -> dict[str, str]:
    """The metadata of a call that is text."""
    return {str(name): value for name, value in context.invocation_metadata() or () if isinstance(value, str)}


def _request_id(context: Context) -> str:
    name = wire.HEADER_REQUEST_ID.lower()
    given = next((value for key, value in context.invocation_metadata() or () if key == name), "")
    return given if isinstance(given, str) and _REQUEST_ID.fullmatch(given) else os.urandom(8).hex()
