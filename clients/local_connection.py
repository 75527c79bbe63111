"""One blocking connection to a daemon's Unix socket, the segments mapped through it, and the leases held on them.

A chunk comes as a place in a segment whose sealed descriptor the daemon has passed once. The bytes are read where they
lie: the view that is handed out keeps the segment mapped, and when it and all that was made from it are gone the lease
is given back. So closing a connection that still has leases only marks it: the daemon may not write over what is read.
A daemon that dies leaves what is mapped as it is.
"""

import contextlib
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .. import limits
from ..errors import DaemonSilent, DaemonUnavailable, InvalidRequest, KvloomError
from ..kvstore.key import ContentKey
from ..kvstore.tier import Buffer
from .local_replies import GetReply, Granted, Mapped
from .local_stage import Stage
from .local_stream import LocalGone, LocalStream
from .local_wire import Frame, Kind, decode_error
from .patience import UNBOUNDED, Deadline

if TYPE_CHECKING:
    import mmap

    import numpy as np
    from numpy.typing import NDArray

    from .local_keeping import Keeping
    from .local_kept import KeptChunk
    from .local_segments import MappedSegments

__all__ = ["LocalConnection"]

_PROBE_SECONDS: Final = 0.005
"""For how long a daemon that was there is believed to be: another one does not start in so short a time."""


class LocalConnection:
    """Connects when made. Whoever holds it owns it; only leases may end in any thread and at any time."""

    def __init__(
        self,
        path: Path,
        key: str | None = None,
        deadline: Deadline = UNBOUNDED,
        kept: "dict[ContentKey, KeptChunk] | None" = None,
    ) -> None:
        """``kept`` are the chunks that may be read again without asking; None keeps nothing."""
        self._path = path
        self._kept = kept if key is None else None
        self._board_asked: int | None = None
        self._probe_at = 0.0
        self._keeping: Keeping | None = None
        self._stream = LocalStream(path)
        self._lock = threading.Lock()
        self._number = 0
        self._segments: MappedSegments | None = None
        self._leases: set[int] = set()
        self._ended: deque[int] = deque()
        self._ended_bytes = 0
        self._unsent: list[int] = []
        self._closing = False
        self.stage = Stage()
        """What a container is put through."""
        self.reusable = True
        """Whether the connection stands and may carry another exchange."""
        try:
            hello = () if key is None else (key.encode(),)
            with self.until(deadline):
                self.exchange(Kind.HELLO, hello, seconds_max=limits.CONNECT_SECONDS_MAX)
        except DaemonUnavailable:
            raise
        except KvloomError as error:
            self._shut()
            raise LocalGone(str(error)) from error

    def close(self) -> None:
        """Close the socket as soon as no lease is held any more. Idempotent."""
        self._closing = True
        self.reusable = False
        self._forget_kept()
        if not self._leases.difference(self._ended):
            self._shut()

    def until(self, deadline: Deadline) -> contextlib.AbstractContextManager[None]:
        """Questions and answers in this context have until ``deadline``, all together."""
        return self._stream.until(deadline)

    def exchange(
        self,
        kind: Kind,
        body: Sequence[Buffer],
        *,
        seconds_max: float = limits.PROGRESS_SECONDS_MAX,
        descriptor: int | None = None,
    ) -> memoryview:
        """Ask and give the body of the answer; raises as :meth:`ask` and :meth:`answer` do."""
        return self.answer(kind, self.ask(kind, body, descriptor=descriptor), seconds_max=seconds_max)

    def ask(self, kind: Kind, body: Sequence[Buffer], *, descriptor: int | None = None) -> int:
        """Send a question; its number. Questions may follow each other, and are answered in their order.

        Raises :class:`LocalGone` where the connection breaks, and :class:`DaemonUnavailable` where the daemon does not
        take it; the connection is of no use after either.
        """
        self._number = number = (self._number + 1) % 2**32
        frame = Frame(kind, number, sum(map(len, body)), int(descriptor is not None)).encode()
        try:
            with self._lock:
                # Who only reads needs no room in the daemon's memory: a few leases are given back together.
                releases = self._releases() if kind is not Kind.GET or self._many_ended(2) else ()
                self._stream.send((*releases, *self._used(), frame, *body), () if descriptor is None else (descriptor,))
        except (BlockingIOError, TimeoutError) as error:
            raise self._silent() from error
        except OSError as error:
            raise self._broken(error) from error
        return number

    def answer(self, kind: Kind, number: int, *, seconds_max: float = limits.PROGRESS_SECONDS_MAX) -> memoryview:
        """The body of the answer to the oldest question that has none yet, or raise the error that it is.

        Raises :class:`LocalGone` where the connection breaks or makes no sense, and :class:`DaemonUnavailable` where
        nothing comes for ``seconds_max``; the connection is of no use after either.
        """
        try:
            self._stream.set_wait(seconds_max)
            answer, data = self._stream.receive()
        except (BlockingIOError, TimeoutError) as error:
            raise self._silent() from error
        except (OSError, EOFError, InvalidRequest) as error:
            raise self._broken(error) from error
        if answer.kind is Kind.ERROR:
            raise self._error(data)
        if answer.kind is not kind or answer.number != number:
            self._give_up()
            raise LocalGone(f"daemon at {self._path} answered {answer.kind.name} to {kind.name}")
        return data

    def _silent(self) -> DaemonUnavailable:
        self._give_up()
        return DaemonSilent(f"daemon at {self._path} did not go on within its time limit")

    def _broken(self, error: Exception) -> LocalGone:
        self._give_up()
        return LocalGone(f"daemon at {self._path} broke off: {error}")

    def take_grants(self, reply: GetReply) -> None:
        """Map the segments that came with ``reply``; unmap those that are gone, once nothing of them is read."""
        if len(reply.granted) != self._stream.announced:
            self._give_up()
            raise LocalGone(
                f"daemon at {self._path} named {len(reply.granted)} segments, passed {self._stream.announced}"
            )
        for item in reply.granted:
            self._map(item)
        if self._segments is not None:
            for number in reply.gone:
                self._forget_kept(self._segments.forget(number))
        # What is left came with the first byte of a later answer, if any of that is here.
        if self._stream.descriptors and self._stream.is_read_up:
            self._give_up()
            raise LocalGone(f"daemon at {self._path} passed descriptors that it did not name")

    def window(self, found: Mapped, key: ContentKey) -> "NDArray[np.uint8]":
        """The memory that ``found`` lies in, from its first range to its last, read-only.

        The lease lasts until the array and everything made from it are gone; one that stands on the board is kept then.
        Raises :class:`LocalGone` for a place outside of what is mapped.
        """
        segment = None if self._segments is None else self._segments.of(found)
        if self._segments is None or segment is None:
            self._give_up()
            raise LocalGone(f"daemon at {self._path} named a place outside of segment {found.segment}")
        self._leases.add(found.lease)
        end = self.end_lease
        if found.kept and self._keeping is not None:
            end = self._keeping.add(self, segment, key, found).end
        return self._segments.window(segment, found, end)

    def sum_of(self, window: "NDArray[np.uint8]") -> int:
        """The word sum of a window of this connection (:func:`kvloom.kvstore.sharing.word_sum`)."""
        return -1 if self._segments is None else self._segments.sum_of(window)

    def spoil(self, found: Mapped) -> None:
        """What lies there is damaged: do not read it by this lease again."""
        if self._keeping is not None:
            self._keeping.spoil(found)

    def ask_for_board(self) -> None:
        """Ask the daemon to make a board, once; :meth:`take_board` before the answer to the question that follows."""
        if self._kept is None or self._board_asked is not None:
            return
        from .local_board import boards_possible  # here: not every system has what they need

        if boards_possible():
            self._board_asked = self.ask(Kind.BOARD, ())
        else:
            self._kept = None

    def take_board(self, seconds_max: float) -> None:
        """Keep leases from now on, if the daemon, having been asked, makes a board. Raises as :meth:`answer` does."""
        if self._kept is None or self._board_asked is None:
            return
        from .local_board import Board
        from .local_keeping import Keeping

        kept, self._kept = self._kept, None
        try:
            self.answer(Kind.BOARD, self._board_asked, seconds_max=seconds_max)
        except DaemonUnavailable:
            raise
        except KvloomError:
            return  # it refuses: then every read asks
        if not self._stream.announced:
            return  # it makes none
        try:
            self._keeping = Keeping(Board(self._stream.descriptors.popleft()), kept)
        except (OSError, ValueError) as error:
            self._give_up()
            raise LocalGone(f"board cannot be mapped: {error}") from error

    def may_read_kept(self) -> bool:
        """Whether the daemon is there, and this client reads so little by kept leases that it need not be counted."""
        if not self.reusable or len(self._leases) >= limits.LOCAL_KEPT_READ_MAX:
            return False
        now = time.monotonic()
        if now < self._probe_at:
            return True
        if not self._stream.is_open_there:
            return False
        self._probe_at = now + _PROBE_SECONDS
        return True

    def hold(self, lease: int) -> None:
        """A kept lease is read by from now on; the daemon is told later."""
        self._leases.add(lease)
        if self._keeping is not None and self._keeping.note_use(lease):
            self._tell_uses()

    def put_back(self, chunk: "KeptChunk") -> bool:
        """Nobody reads by a kept lease any more; whether it may be kept on."""
        if self._closing or self._keeping is None or not self._keeping.put_back(chunk):
            return False
        self._leases.discard(chunk.found.lease)
        return True

    def _tell_uses(self) -> None:
        """Tell the daemon of reads by kept leases; where the connection is busy, a later question does."""
        if self._lock.acquire(blocking=False):
            try:
                self._stream.send(self._used(), (), wait=False)
            except OSError:
                return  # busy or gone: they are counts, and nothing hangs on them
            finally:
                self._lock.release()

    def drop(self, found: Mapped) -> None:
        """Give back a lease of which no window was taken."""
        self._leases.add(found.lease)
        self.end_lease(found.lease, 0)

    def end_lease(self, lease: int, size_bytes: int) -> None:
        """Tell the daemon with a later question, or now, if much has come together and the connection is not busy."""
        self._ended.append(lease)
        self._ended_bytes += size_bytes
        if not self._closing and not self._many_ended(1):
            return
        # Who finds the lock taken leaves its lease to who holds it, and that one looks again afterwards.
        while self._ended and self._lock.acquire(blocking=False):
            try:
                self._stream.send(self._releases(), (), wait=False)
            except BlockingIOError:
                self._ended.extend(self._unsent)  # the daemon does not read just now: with the next question
                return
            except OSError:
                self._ended.clear()  # it is gone, and what was leased stays as it is
            finally:
                self._lock.release()
        if self._closing and not self._leases.difference(self._ended):
            self._shut()

    def _many_ended(self, share: int) -> bool:
        """Whether the leases that ended come to one in ``share`` of what may be kept back."""
        return (
            len(self._ended) * share >= limits.LOCAL_RELEASES_DEFERRED_MAX
            or self._ended_bytes * share >= limits.LOCAL_RELEASED_BYTES_DEFERRED_MAX
        )

    def _used(self) -> list[Buffer]:
        return [] if self._keeping is None else self._keeping.used()

    def _forget_kept(self, segment: "mmap.mmap | None" = None) -> None:
        if self._keeping is not None:
            self._keeping.forget(segment)

    def _error(self, data: memoryview) -> KvloomError:
        try:
            return decode_error(data)
        except InvalidRequest as error:
            self._give_up()
            raise LocalGone(f"daemon at {self._path} made no sense: {error}") from error

    def _releases(self) -> list[Buffer]:
        self._unsent = [self._ended.popleft() for _ in range(min(len(self._ended), limits.LOCAL_LEASES_MAX))]
        if not self._unsent:
            return []
        self._leases.difference_update(self._unsent)
        self._ended_bytes = 0
        body = struct.pack(f"<{len(self._unsent)}Q", *self._unsent)
        return [Frame(Kind.RELEASE, 0, len(body)).encode(), body]

    def _map(self, item: Granted) -> None:
        if self._segments is None:
            from .local_segments import MappedSegments  # here: a client of a remote daemon needs no NumPy

            self._segments = MappedSegments()
        descriptor = self._stream.descriptors.popleft()
        try:
            self._segments.map(item.segment, descriptor, item.size_bytes)
        except (OSError, ValueError, OverflowError) as error:
            self._give_up()
            raise LocalGone(f"segment cannot be mapped: {error}") from error
        finally:
            os.close(descriptor)

    def _give_up(self) -> None:
        """The daemon does not write over what is leased when a connection ends like this, so it may end at once."""
        self.reusable = False
        self._shut()

    def _shut(self) -> None:
        self._closing = True
        self._stream.close()
        self._forget_kept()
        if self._segments is not None:
            self._segments.clear()
