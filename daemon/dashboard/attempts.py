"""Logins that failed, per address: whoever tries key after key is not listened to for a while. Pure."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ... import limits
from ...errors import TooManyAttempts

__all__ = ["Attempts"]

_IPV6_NETWORK_BITS: Final = 64


class Attempts:
    """At most :data:`limits.LOGIN_FAILURES_MAX` failures of one address in :data:`limits.LOGIN_WINDOW_SECONDS`.

    Addresses past :data:`limits.LOGIN_PEERS_MAX` push the ones out that failed longest ago. An IPv6 network is one
    address: whoever has one has all of it. ``clock`` says monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise :class:`TooManyAttempts` where ``address`` has to wait."""
        recent = self._recent(address)
        if len(recent) >= limits.LOGIN_FAILURES_MAX:
            wait_seconds = recent[0] + limits.LOGIN_WINDOW_SECONDS - self._clock()
            error = TooManyAttempts(
                f"{len(recent)} keys that do not hold came from this address, try again in {wait_seconds:.0f} s"
            )
            error.retry_seconds = wait_seconds
            raise error

    def failed(self, address: str) -> None:
        """A key that does not hold came from ``address``."""
        name = _network(address)
        self._failures[name] = [*self._recent(address), self._clock()]
        self._failures.move_to_end(name)
        if len(self._failures) > limits.LOGIN_PEERS_MAX:
            self._failures.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        oldest = self._clock() - limits.LOGIN_WINDOW_SECONDS
        return [at for at in self._failures.get(_network(address), ()) if at > oldest]


def _network(address: str) -> str:
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped is None:
        return str(ipaddress.ip_network((known, _IPV6_NETWORK_BITS), strict=False))
    return str(known)
