"""The network tier: an engine that a cluster already has, shared by all daemons that are pointed at it.

One line says which (:mod:`.address`). What is opened is the engine's tier with everything around it that a network
needs: a bound on what is under way, a time for every try, retries, and a circuit breaker.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ...errors import MissingDependency
from ..tier import Tier
from ..wrappers.breaker import BreakerPolicy, BreakerTier
from ..wrappers.retry import RetryPolicy, RetryTier
from ..wrappers.throttle import InflightBytes, ThrottleTier
from .address import MooncakeAddress, NetworkAddress, S3Address, ValkeyAddress, parse_network

__all__ = ["PASSWORD_VARIABLE", "USERNAME_VARIABLE", "guarded", "open_network_tier", "parse_network"]

USERNAME_VARIABLE: Final = "KVLOOM_NETWORK_USERNAME"
PASSWORD_VARIABLE: Final = "KVLOOM_NETWORK_PASSWORD"  # noqa: S105 - the name of a variable
_NEAR: Final = (RetryPolicy(seconds_max=0.5), BreakerPolicy(stall_seconds=0.3, ping_seconds=0.4))
_FAR: Final = (RetryPolicy(seconds_max=3.0, item_seconds=0.02), BreakerPolicy(stall_seconds=0.3, ping_seconds=0.6))
"""An object store answers in tens to hundreds of milliseconds, and asks the network for every key by itself."""


def open_network_tier(url: str, *, environ: Mapping[str, str] | None = None) -> BreakerTier:
    """The tier that ``url`` configures, with its guards. Does not connect: a store that is away is not an error here.

    Raises :class:`ConfigError` for a line that is wrong, :class:`MissingDependency` where the engine's client is not
    installed. The tier belongs to the event loop that first uses it.
    """
    address = parse_network(url)
    inflight = InflightBytes()
    tier = _bare(address, inflight, os.environ if environ is None else environ)
    return guarded(tier, inflight, *(_FAR if isinstance(address, S3Address) else _NEAR))


def guarded(tier: Tier, inflight: InflightBytes, retry: RetryPolicy, breaker: BreakerPolicy) -> BreakerTier:
    """``tier`` with its guards, from the inside: retries, the throttle, and the breaker, which fails fastest."""
    return BreakerTier(ThrottleTier(RetryTier(tier, retry), inflight), breaker)


def _bare(address: NetworkAddress, inflight: InflightBytes, environ: Mapping[str, str]) -> Tier:
    try:
        if isinstance(address, ValkeyAddress):
            from .valkey import ValkeyTier

            username = address.username or environ.get(USERNAME_VARIABLE) or None
            password = address.password or environ.get(PASSWORD_VARIABLE) or None
            return ValkeyTier(replace(address, username=username, password=password), inflight=inflight)
        if isinstance(address, MooncakeAddress):
            from .mooncake import MooncakeTier

            return MooncakeTier(address, inflight=inflight)
        from .s3 import S3Tier

        return S3Tier(address, inflight=inflight)
    except ImportError as error:
        extra = str(address).partition(":")[0].removesuffix("s" if isinstance(address, ValkeyAddress) else "")
        raise MissingDependency(
            f"network {address} needs {error.name or error}: pip install 'kvloom[{extra}]'"
        ) from error
