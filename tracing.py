"""Where a request spends its time: spans, for whoever has installed a tracer; by default nothing is recorded.

Every room may mark what it does; none knows what records it (:mod:`.clients.otel` does). A span covers what runs inside
its ``with``, in tasks and worker threads started there too. Its attributes are sizes and names, never tokens.
"""

from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from functools import wraps
from types import TracebackType
from typing import Any, Final, ParamSpec, Protocol, TypeVar

__all__ = ["Role", "Span", "Tracer", "install", "propagated", "recording", "span", "traced", "traced_async"]

P = ParamSpec("P")
T = TypeVar("T")
Value = str | int | float | bool


class Role(Enum):
    """Whose work a span is: that of this process alone, or one side of a request between two."""

    INTERNAL = "internal"
    CLIENT = "client"
    SERVER = "server"


class Span(Protocol):
    """Something under way."""

    @property
    def trace_id(self) -> str:
        """Which request it belongs to, in hexadecimal; empty where nothing is recorded."""

    def set(self, name: str, value: Value) -> None:
        """Say something more about it."""

    def fail(self, reason: str) -> None:
        """It has failed."""


class Tracer(Protocol):
    """What records spans."""

    def span(
        self, name: str, role: Role, carrier: Mapping[str, str] | None, attributes: Mapping[str, Value]
    ) -> AbstractContextManager[Span]:
        """A span inside the one under way, or inside the one that ``carrier`` (headers) names."""

    def propagated(self) -> dict[str, str]:
        """Headers that name the span under way."""


class _Nothing:
    """The span of nobody: one for all, without state."""

    __slots__ = ()
    trace_id: Final = ""

    def set(self, name: str, value: Value) -> None:
        """Not recorded."""

    def fail(self, reason: str) -> None:
        """Not recorded."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


_NOTHING: Final = _Nothing()
_tracer: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Record with ``tracer`` from now on, in this process; ``None`` records nothing any more."""
    global _tracer
    _tracer = tracer


def span(
    name: str, *, role: Role = Role.INTERNAL, carrier: Mapping[str, str] | None = None, **attributes: Value
) -> AbstractContextManager[Span]:
    """What runs inside the context is ``name``; ``carrier`` are the headers of a request that came in."""
    return _NOTHING if _tracer is None else _tracer.span(name, role, carrier, attributes)


def recording() -> bool:
    """Whether anything is recorded: for what is worth preparing only then."""
    return _tracer is not None


def propagated() -> dict[str, str]:
    """Headers to send with a request, so that whoever answers it continues the trace."""
    return {} if _tracer is None else _tracer.propagated()


def traced(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Each call of the function is a span."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if _tracer is None:
                return function(*args, **kwargs)
            with _tracer.span(name, Role.INTERNAL, None, {}):
                return function(*args, **kwargs)

        return call

    return decorate


def traced_async(
    name: str,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Each call of the coroutine function is a span."""

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if _tracer is None:
                return await function(*args, **kwargs)
            with _tracer.span(name, Role.INTERNAL, None, {}):
                return await function(*args, **kwargs)

        return call

    return decorate
