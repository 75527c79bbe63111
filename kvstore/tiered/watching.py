"""What tiers give up by themselves, told to the store's observer where that lives: on the event loop."""

import asyncio
import threading
from collections.abc import Iterable
from contextlib import suppress

from ..key import StorageKey
from ..tier import Tier
from .stats import StoreObserver

__all__ = ["watch_evictions"]


def watch_evictions(tiers: Iterable[Tier], observer: StoreObserver) -> None:
    """Have ``observer`` told of every eviction, in their order, if it wants to know. Call it on the event loop."""
    if type(observer).on_removed is StoreObserver.on_removed:
        return
    loop, own_thread = asyncio.get_running_loop(), threading.get_ident()

    def watch(tier: Tier) -> None:
        def evicted(key: StorageKey) -> None:
            if threading.get_ident() == own_thread:
                observer.on_removed(tier.name, key)
                return
            with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
                loop.call_soon_threadsafe(observer.on_removed, tier.name, key)

        tier.watch(evicted)

    for tier in tiers:
        watch(tier)
