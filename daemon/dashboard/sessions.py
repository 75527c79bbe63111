"""Sessions of the dashboard: a key proven once, named by a secret that a cookie carries. Pure.

What a session may see is not kept here but follows from its key every time, so one that is revoked or expires takes its
sessions with it. Of the secrets only digests are kept; nothing outlives the daemon.
"""

import base64
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from ... import limits
from ...errors import Overloaded, Unauthenticated

__all__ = ["NewSession", "Sessions"]

_DIGEST_CONTEXT: Final = "kvloom 2026-11 digest of a dashboard session"
_ID_BYTES: Final = 8
_SECRET_BYTES: Final = 32
_TEXT: Final = re.compile(r"([0-9a-f]{16})\.[A-Za-z0-9_-]{43}", re.ASCII)
_REFUSED: Final = "the session has ended: log in again"


@dataclass(frozen=True, slots=True)
class NewSession:
    """What the cookie carries, and for how long."""

    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Session:
    key_id: str
    digest: bytes
    until: float


_NOBODY: Final = _Session("", bytes(32), 0.0)


class Sessions:
    """``clock`` says monotonic seconds, ``random`` gives so many bytes. Belongs to one event loop."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._clock = clock
        self._random = random
        self._sessions: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, key_id: str) -> NewSession:
        """A session for whoever has proven ``key_id``; the oldest of that key ends where it has too many.

        Raises :class:`Overloaded` where there are too many of all keys.
        """
        self._forget()
        mine = [known for known, session in self._sessions.items() if session.key_id == key_id]
        if len(mine) >= limits.SESSIONS_PER_KEY_MAX:
            del self._sessions[mine[0]]
        if len(self._sessions) >= limits.SESSIONS_MAX:
            raise Overloaded(f"there are {len(self._sessions)} sessions, the limit is {limits.SESSIONS_MAX}")
        session_id = self._random(_ID_BYTES).hex()
        secret = base64.urlsafe_b64encode(self._random(_SECRET_BYTES)).rstrip(b"=").decode()
        text = f"{session_id}.{secret}"
        until = self._clock() + limits.SESSION_SECONDS_MAX
        self._sessions[session_id] = _Session(key_id, _digest(text), until)
        return NewSession(text, limits.SESSION_SECONDS_MAX)

    def key_id(self, text: str) -> str:
        """The key whose session ``text`` names; :class:`Unauthenticated` where it names none that goes on."""
        return self._find(text)[1].key_id

    def end(self, text: str) -> None:
        """End the session that ``text`` names; raises as :meth:`key_id`."""
        del self._sessions[self._find(text)[0]]

    def _find(self, text: str) -> tuple[str, _Session]:
        match = _TEXT.fullmatch(text)
        session_id = "" if match is None else match[1]
        # Where there is no such session a digest is compared as well: ids are not to be found out by the clock.
        session = self._sessions.get(session_id, _NOBODY)
        is_of = hmac.compare_digest(_digest(text), session.digest)
        if not is_of or session is _NOBODY or self._clock() >= session.until:
            raise Unauthenticated(_REFUSED)
        return session_id, session

    def _forget(self) -> None:
        now = self._clock()
        for over in [known for known, session in self._sessions.items() if now >= session.until]:
            del self._sessions[over]


def _digest(text: str) -> bytes:
    return blake3(text.encode("utf-8", "replace"), derive_key_context=_DIGEST_CONTEXT).digest()
