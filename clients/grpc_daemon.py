"""A daemon over gRPC, for the blocking and the asyncio client: connections, waits, and errors as over HTTP."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .. import limits
from ..errors import ConfigError, DaemonSilent, MissingDependency, Unauthenticated
from ..tracing import propagated
from .access import Access
from .discovery import Endpoint, parse_address
from .patience import UNBOUNDED, Deadline
from .protocol import HttpReply, Operation

if TYPE_CHECKING:
    import grpc

    from .grpc_calls import GrpcCall

__all__ = ["AsyncGrpcDaemon", "GrpcDaemon", "grpc_endpoint"]

T = TypeVar("T")
_SCHEMES: Final = {"grpc://": False, "grpcs://": True}
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", limits.JSON_BODY_BYTES_MAX),
    ("grpc.http2.max_frame_size", limits.STREAM_FRAME_BYTES),
    ("grpc.http2.lookahead_bytes", limits.GRPC_FRAME_BYTES_MAX),
    ("grpc.min_reconnect_backoff_ms", int(limits.CONNECT_SECONDS_MAX * 1000)),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own per client, closed with it
)
_BLOCKING_OPTIONS: Final = (
    *_OPTIONS,
    # The thread that asks receives, too (gRPC's own name for it is ChannelOptions.SingleThreadedUnaryStream): handing
    # frames over from one thread to another takes a third of the time of a read.
    ("SingleThreadedUnaryStream", 1),
)


def grpc_endpoint(address: str | None) -> Endpoint | None:
    """Where ``grpc://host:port`` points to, or ``grpcs://`` with TLS; ``None`` for any other address.

    :class:`ConfigError` without a port.
    """
    scheme = next((scheme for scheme in _SCHEMES if address is not None and address.startswith(scheme)), None)
    if address is None or scheme is None:
        return None
    if not address.rpartition(":")[2].rstrip("/").isdecimal():
        raise ConfigError(f"address {address[:80]!r} is not {scheme}host:port")
    found = parse_address(f"//{address.removeprefix(scheme)}")
    return Endpoint(found.host, found.port, _SCHEMES[scheme])


def _load() -> Any:
    """The extra's modules, when a client first needs them."""
    try:
        import grpc

        from . import grpc_calls
    except ImportError as error:
        raise MissingDependency("grpc:// needs the extra: pip install 'kvloom[grpc]'") from error
    return grpc, grpc_calls


class GrpcDaemon:
    """One channel to one daemon, opened by the first call. Safe to use from several threads at once.

    ``access`` says where it is, whom to trust, and which credential goes with every call.
    """

    def __init__(self, access: Access) -> None:
        self._grpc, self._calls = _load()
        self._endpoint = access.endpoint
        self._access = access
        self._credentials = _credentials(self._grpc, access)
        self._channel: grpc.Channel | None = None
        self._lock = threading.Lock()
        self._watch = _Watch()

    def close(self) -> None:
        """Close the channel. The object may be used again afterwards."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def run(self, operation: Operation[T], deadline: Deadline = UNBOUNDED) -> T:
        """Make the call that ``operation`` is; :class:`DaemonUnavailable` where nobody answers or it does not go on."""
        access = self._access
        reply = self._exchange(operation, access, deadline)
        if reply.status == Unauthenticated.http_status and (renewed := access.renewed()) is not None:
            self._access = renewed
            reply = self._exchange(operation, renewed, deadline)
        return operation.parse(reply)

    def _exchange(self, operation: Operation[Any], access: Access, deadline: Deadline) -> HttpReply:
        call: GrpcCall = self._calls.call_of(operation)
        call.follows, call.is_near = True, self._endpoint.is_near
        progress = _Progress(call.messages(), operation.answer_seconds_max)
        try:
            timeout = deadline.left(limits.LOOKUP_SECONDS_MAX) if deadline.bounded else None
        except TimeoutError as error:
            raise self._silent() from error
        channel: Any = self._open()
        method = channel.unary_stream(call.method) if call.asks_once else channel.stream_stream(call.method)
        asked = next(progress) if call.asks_once else progress
        answers = method(asked, metadata=_metadata(access), timeout=timeout)
        progress.cancel = answers.cancel
        self._watch.add(progress)
        try:
            for message in answers:
                progress.note(limits.PROGRESS_SECONDS_MAX)
                call.feed(message)
            return call.reply()
        except self._grpc.RpcError as error:
            if progress.given_up or (timeout and error.code() is self._grpc.StatusCode.DEADLINE_EXCEEDED):
                raise self._silent() from error
            return _refused(self._calls, self._grpc, error, self._endpoint)
        finally:
            self._watch.remove(progress)
            answers.cancel()

    def _silent(self) -> DaemonSilent:
        return DaemonSilent(f"daemon at {self._endpoint} did not go on within its time limit")

    def _open(self) -> "grpc.Channel":
        with self._lock:
            if self._channel is None:
                target = str(self._endpoint)
                self._channel = (
                    self._grpc.insecure_channel(target, options=_BLOCKING_OPTIONS)
                    if self._credentials is None
                    else self._grpc.secure_channel(target, self._credentials, options=_BLOCKING_OPTIONS)
                )
            return self._channel


class AsyncGrpcDaemon:
    """The same for an event loop; belongs to the loop of its first call. Safe to cancel."""

    def __init__(self, access: Access) -> None:
        self._grpc, self._calls = _load()
        self._endpoint = access.endpoint
        self._access = access
        self._credentials = _credentials(self._grpc, access)
        self._channel: grpc.aio.Channel | None = None

    async def close(self) -> None:
        """Close the channel. The object may be used again afterwards."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def run(self, operation: Operation[T]) -> T:
        """See :meth:`GrpcDaemon.run`."""
        access, wait = self._access, operation.answer_seconds_max
        reply = await self._exchange(self._calls.call_of(operation), wait, access)
        if reply.status == Unauthenticated.http_status and (renewed := access.renewed()) is not None:
            self._access = renewed
            reply = await self._exchange(self._calls.call_of(operation), wait, renewed)
        if reply.summed is not None or len(reply.body) < limits.STREAM_FRAME_BYTES:
            return operation.parse(reply)
        return await asyncio.to_thread(operation.parse, reply)

    async def _exchange(self, call: "GrpcCall", answer_seconds: float, access: Access) -> HttpReply:
        stream: Any = self._open().stream_stream(call.method)(metadata=_metadata(access))
        wait = answer_seconds
        call.is_near = self._endpoint.is_near
        try:
            for message in call.messages():
                async with asyncio.timeout(limits.PROGRESS_SECONDS_MAX):
                    await stream.write(message)
            await stream.done_writing()
            while True:
                async with asyncio.timeout(wait):
                    received = await stream.read()
                if received is self._grpc.aio.EOF:
                    break
                call.feed(received)
                wait = limits.PROGRESS_SECONDS_MAX
            if await stream.code() is not self._grpc.StatusCode.OK:
                raise await _status_of(stream, self._grpc)
            return call.reply()
        except TimeoutError as error:
            raise DaemonSilent(f"daemon at {self._endpoint} did not go on within its time limit") from error
        except asyncio.InvalidStateError:  # refused while the messages were being sent: the status says why
            return _refused(self._calls, self._grpc, await _status_of(stream, self._grpc), self._endpoint)
        except self._grpc.RpcError as error:
            return _refused(self._calls, self._grpc, error, self._endpoint)
        finally:
            stream.cancel()

    def _open(self) -> "grpc.aio.Channel":
        if self._channel is None:
            target = str(self._endpoint)
            self._channel = (
                self._grpc.aio.insecure_channel(target, options=_OPTIONS)
                if self._credentials is None
                else self._grpc.aio.secure_channel(target, self._credentials, options=_OPTIONS)
            )
        return self._channel


class _Progress:
    """The messages of a call on their way out, and when the next thing must have moved."""

    def __init__(self, messages: Iterator[bytes], answer_seconds: float) -> None:
        self._messages = messages
        self._answer_seconds = answer_seconds
        self.ends = time.monotonic() + answer_seconds
        self.given_up = False
        self.cancel: Callable[[], object] = bool
        """What ends the call."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.note(self._answer_seconds)
        return next(self._messages)

    def note(self, seconds: float) -> None:
        """Something moved: the next thing may take ``seconds``."""
        self.ends = time.monotonic() + seconds

    def give_up(self) -> None:
        """Nothing moved in time."""
        self.given_up = True
        self.cancel()


class _Watch:
    """Ends calls in which nothing moves for too long; one thread for all of them, which ends when there are none.

    A call may put its end off unseen, so the thread looks again when the earliest end that it knew of has come.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: set[_Progress] = set()
        self._thread: threading.Thread | None = None
        self._looks_again = 0.0

    def add(self, call: _Progress) -> None:
        """Watch ``call`` from now on."""
        with self._changed:
            self._calls.add(call)
            if self._thread is None or not self._thread.is_alive():  # of a process this one was forked from, none is
                self._thread = threading.Thread(target=self._run, name="kvloom-grpc-watch", daemon=True)
                self._looks_again = call.ends
                self._thread.start()
            elif call.ends < self._looks_again:
                self._changed.notify()

    def remove(self, call: _Progress) -> None:
        """The call has ended."""
        with self._changed:
            self._calls.discard(call)

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late = [call for call in self._calls if call.ends <= now]
                self._calls.difference_update(late)
                if not late:
                    if not self._calls:
                        self._thread = None
                        return
                    self._looks_again = min(call.ends for call in self._calls)
                    self._changed.wait(self._looks_again - now)
            for call in late:
                call.give_up()


def _metadata(access: Access) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in (access.headers() | propagated()).items())


def _credentials(grpc_module: Any, access: Access) -> Any:
    """What a channel of TLS is opened with, ``None`` for one without; :class:`ConfigError` for files that are not."""
    if not access.endpoint.secure:
        return None
    files = (access.trust.ca, access.trust.key, access.trust.certificate)
    try:
        return grpc_module.ssl_channel_credentials(*(None if file is None else file.read_bytes() for file in files))
    except OSError as error:
        raise ConfigError(f"certificates cannot be used: {error.filename}: {error.strerror}") from error


async def _status_of(stream: Any, grpc_module: Any) -> Any:
    """The error that a call has ended with."""
    return grpc_module.aio.AioRpcError(
        await stream.code(), await stream.initial_metadata(), await stream.trailing_metadata(), await stream.details()
    )


def _refused(calls: Any, grpc_module: Any, error: Any, endpoint: Endpoint) -> HttpReply:
    """The reply that a failed call is; :class:`DaemonUnavailable` where no daemon has answered."""
    trailers = dict(error.trailing_metadata() or ())
    code = trailers.get(calls.ERROR_TRAILER)
    message = error.details() or error.code().name
    if code is None:
        message = f"no daemon answers at {endpoint}: {' '.join(message.split())[:200]}"
    overloaded = error.code() is grpc_module.StatusCode.RESOURCE_EXHAUSTED
    reply: HttpReply = calls.refusal(
        code, message, overloaded=overloaded, retry_ms=trailers.get(calls.RETRY_TRAILER, "")
    )
    return reply
