"""What can be asked of a daemon, and what each call needs: the one table that every edge goes by. Default is deny."""

from enum import Enum

from .caller import Scope

__all__ = ["OPEN", "Call", "Open"]


class Open(Enum):
    """What a call needs that needs no credential: it says nothing about chunks, tenants or figures."""

    OPEN = "open"


OPEN = Open.OPEN


class Call(Enum):
    """One call: what it does, and the scope that its caller needs.

    Calls that are ``admitted`` are served only while the daemon is ready, and counted as inside.
    """

    PUT_CHUNK = ("Store a chunk.", Scope.WRITE)
    GET_CHUNK = ("Read a chunk, or some levels and layers of it.", Scope.READ)
    HEAD_CHUNK = ("Say what a read would send.", Scope.READ)
    DELETE_CHUNK = ("Forget a chunk on every tier.", Scope.WRITE)
    DESCRIBE_CHUNK = ("Say what is stored under a key.", Scope.READ)
    LIST_CHUNKS = ("List some of the chunks that are stored.", Scope.READ)
    PUT_CHUNKS = ("Store several chunks.", Scope.WRITE)
    GET_CHUNKS = ("Read several chunks.", Scope.READ)
    DELETE_CHUNKS = ("Forget several chunks on every tier.", Scope.WRITE)
    DELETE_NAMESPACE = ("Forget every chunk of the caller's namespace.", Scope.ADMIN)
    EXISTS = ("Say for each key whether it is stored.", Scope.READ)
    LONGEST_PREFIX = ("Count the leading chunks that are stored.", Scope.READ)
    PIN = ("Keep chunks from being evicted until a lease ends.", Scope.READ)
    RELEASE = ("End a lease.", Scope.READ)
    HINT = ("Say that chunks will not be used again, or will.", Scope.WRITE)
    PREFETCH = ("Have chunks copied into memory in the background.", Scope.READ)
    PLAN = ("Decide for each chunk of a prompt whether to load or to recompute it.", Scope.READ)
    REPORT = ("Take in what prefilling, loading and decoding took in an engine.", Scope.READ)
    PUT_PROFILE = ("Put a codec profile on the shelf.", Scope.WRITE)
    GET_PROFILE = ("Read a codec profile.", Scope.READ)
    TENANT = ("Say what the caller's namespace did and holds.", Scope.READ, False)
    EVENTS = ("Stream what happens to the chunks of the caller's namespace.", Scope.READ, False)
    NAMESPACES = ("List the namespaces of the daemon with their quotas.", Scope.ADMIN, False)
    STATS = ("Say what the daemon and its tiers hold and have done.", Scope.ADMIN, False)
    SCRUB = ("Begin to read all of the SSD tier and verify it, unless that is under way.", Scope.ADMIN)
    SCRUB_REPORT = ("Say how far that has come.", Scope.ADMIN, False)
    METRICS = ("The same for Prometheus.", Scope.ADMIN, False)
    HEALTH = ("Say which daemon answers, and in which phase it is.", OPEN, False)
    READY = ("Answer 200 while requests are served, 503 otherwise.", OPEN, False)
    DESCRIPTION = ("This description of the interface.", Scope.READ, False)

    def __init__(self, does: str, needs: Scope | Open, admitted: bool = True) -> None:
        self.does = does
        self.needs = needs
        self.admitted = admitted
