"""What a daemon remembers of its last minutes, for people who look at it: bounded, in memory, gone when it ends."""

from .journal import Journal, sampling
from .slow_requests import note_read, note_tenant, note_written

__all__ = ["Journal", "note_read", "note_tenant", "note_written", "sampling"]
