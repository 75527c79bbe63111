"""Who opens the dashboard: a key once, and from then on the cookie of the session that it began."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from aiohttp import web

from ...errors import Forbidden, Unauthenticated
from ..authenticator import Authenticator
from ..caller import Caller, Scope
from .attempts import Attempts
from .sessions import Sessions

__all__ = ["PATH", "Gate", "cookie_name"]

PATH: Final = "/dashboard"
"""Where browsers send the cookie to, and nowhere else."""


def cookie_name(port: int | None) -> str:
    """The name of the cookie: browsers keep the daemons of one machine apart by it, as they do not do by ports."""
    return "kvloom_session" if port is None else f"kvloom_session_{port}"


class Gate:
    """Turns keys into sessions, and sessions into callers."""

    def __init__(
        self,
        authenticator: Authenticator,
        *,
        name: str,
        sessions: Sessions | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self._authenticator = authenticator
        self.cookie = name
        self._sessions = sessions or Sessions()
        self._attempts = attempts or Attempts()

    def by_key(self, request: web.Request, find: Callable[[], Caller]) -> Caller:
        """The caller that ``find`` finds, unless too many that it did not find came from there lately.

        Raises :class:`TooManyAttempts` without looking, and :class:`Forbidden` for a key that may see nothing.
        """
        address = request.remote or ""
        self._attempts.check(address)
        try:
            caller = find()
        except Unauthenticated:
            self._attempts.failed(address)
            raise
        if not caller.scopes & {Scope.READ, Scope.ADMIN}:
            raise Forbidden("this needs scope read or admin")
        return caller

    def by_cookie(self, text: str) -> Caller:
        """The caller whose session ``text`` names; :class:`Unauthenticated` once it or its key has ended."""
        return self._authenticator.by_key_id(self._sessions.key_id(text))

    def begin(self, request: web.Request, response: web.Response, caller: Caller) -> float:
        """Begin a session of ``caller`` and have ``response`` say so; for how many seconds it holds."""
        session = self._sessions.begin(caller.key_id)
        self._set(request, response, session.text, int(session.seconds))
        return session.seconds

    def end(self, request: web.Request, response: web.Response) -> None:
        """End the session of ``request``, where it has one, and have the browser forget the cookie."""
        with suppress(Unauthenticated):
            self._sessions.end(request.cookies.get(self.cookie, ""))
        self._set(request, response, "", 0)

    def _set(self, request: web.Request, response: web.Response, text: str, seconds: int) -> None:
        response.set_cookie(
            self.cookie, text, max_age=seconds, path=PATH, httponly=True, samesite="Strict", secure=request.secure
        )
