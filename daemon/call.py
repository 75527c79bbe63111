"""What can be asked of a daemon, and what each call needs: the one table that every edge goes by. Default is deny."""

from enum import Enum

from .caller import Scope

__all__ = ["KEY", "OPEN", "SESSION", "Call", "Door"]


class Door(Enum):
    """What a call needs where that is no scope of a key."""

    OPEN = "open"
    """Nothing: it says nothing about chunks, tenants or figures."""
    KEY = "key"
    """Any key that holds."""
    SESSION = "session"
    """The cookie of a session of the dashboard, or a key; what is told depends on the scopes of the key behind it."""


OPEN = Door.OPEN
KEY = Door.KEY
SESSION = Door.SESSION


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
    DASHBOARD = ("The dashboard's page; it holds no figures.", OPEN, False)
    DASHBOARD_FILE = ("A style or a script of the page.", OPEN, False)
    LOG_IN = ("Begin a session of the dashboard, which a cookie then names.", KEY, False)
    LOG_OUT = ("End the session.", SESSION, False)
    DASHBOARD_STATE = ("Say what the dashboard shows to this caller.", SESSION, False)
    DASHBOARD_CHUNK = ("Say what a chunk has for every level and layer.", SESSION)

    def __init__(self, does: str, needs: Scope | Door, admitted: bool = True) -> None:
        self.does = does
        self.needs = needs
        self.admitted = admitted
