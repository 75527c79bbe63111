"""Who a credential belongs to: the one place where edges turn what they were sent into a caller."""

import hmac
from dataclasses import dataclass, field
from typing import Final

from .. import limits
from ..errors import Unauthenticated
from .caller import Caller

__all__ = ["Authenticator"]

_SCHEME: Final = "bearer "
_REFUSED: Final = "a key is needed (Authorization: Bearer …), and this is not one that holds"


@dataclass(slots=True)
class Authenticator:
    """Knows ``local``, whom this user's programs speak for, and the ``token`` that they send over HTTP.

    ``open_to_all``, only ever on loopback, takes whoever sends no credential for ``local``.
    """

    local: Caller
    token: str | None = field(default=None, repr=False)
    open_to_all: bool = False

    def by_header(self, values: list[str]) -> Caller:
        """The caller that the ``Authorization`` headers of a request name; :class:`Unauthenticated` where none."""
        if not values and self.open_to_all:
            return self.local
        if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated(_REFUSED)
        return self.by_key(values[0][len(_SCHEME) :].strip())

    def by_key(self, text: str) -> Caller:
        """The caller whose credential ``text`` is; :class:`Unauthenticated` for any that does not hold."""
        if len(text) > limits.CREDENTIAL_CHARS_MAX or not text.isascii():
            raise Unauthenticated(_REFUSED)
        if self.token is not None and hmac.compare_digest(text, self.token):
            return self.local
        raise Unauthenticated(_REFUSED)
