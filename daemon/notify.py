"""Telling the service manager how the daemon is: sd_notify(3) and its watchdog, without a library.

A datagram of lines goes to the socket that ``NOTIFY_SOCKET`` names. Where there is none, nothing is said.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import structlog

__all__ = ["Notifier"]

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE: Final = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE: Final = "WATCHDOG_PID"
_BEATS: Final = 3
"""Signs of life within the time after which the manager takes a daemon for hung."""
_log = structlog.get_logger("kvloom.daemon")


@dataclass(frozen=True, slots=True)
class Notifier:
    """``address`` is where to send (empty: nowhere), ``watchdog_seconds`` how long it may be silent, if that counts."""

    address: str = ""
    watchdog_seconds: float | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Notifier":
        """What systemd says to its child; numbers that are none count as not said."""
        address = environ.get(SOCKET_VARIABLE, "")
        microseconds, pid = environ.get(WATCHDOG_VARIABLE, ""), environ.get(WATCHDOG_PID_VARIABLE, "")
        meant = pid in ("", str(os.getpid()))
        counts = meant and microseconds.isascii() and microseconds.isdigit() and int(microseconds) > 0
        return cls(address if address.startswith(("/", "@")) else "", int(microseconds) / 1_000_000 if counts else None)

    def ready(self, status: str) -> None:
        """The daemon serves."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def stopping(self, status: str) -> None:
        """The daemon drains."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """While the context lasts, show that the event loop goes round."""
        if self.watchdog_seconds is None or not self.address:
            yield
            return
        beating = asyncio.create_task(self._beat(self.watchdog_seconds / _BEATS))
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.wait((beating,))

    async def _beat(self, seconds: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(seconds)

    def _send(self, text: str) -> None:
        """One datagram; a manager that does not take it is no reason to stop, and is never waited for."""
        if not self.address:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with (
            suppress(BlockingIOError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            try:
                sender.sendto(text.encode(), address)
            except BlockingIOError:
                raise
            except OSError as error:
                _log.warning("service manager not told", socket=self.address, reason=str(error))
