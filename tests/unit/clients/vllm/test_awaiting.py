"""What is awaited is asked for until it has come or nobody wants it any more, whatever the daemon says meanwhile."""

import threading
from collections.abc import Sequence

from blake3 import blake3

from kvloom.clients.vllm.awaiting import Awaiting
from kvloom.errors import StorageUnavailable
from kvloom.kvstore.key import ContentKey

WAIT_SECONDS = 60.0
FIRST, SECOND = (ContentKey(blake3(name).digest()) for name in (b"first", b"second"))


class Daemon:
    """Has ``stored``; its first answer is an error."""

    def __init__(self) -> None:
        self.stored: set[ContentKey] = set()
        self.asked: list[set[ContentKey]] = []

    def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        self.asked.append(set(keys))
        if len(self.asked) == 1:
            raise StorageUnavailable("the tests' daemon stumbles")
        return [key in self.stored for key in keys]


def test_what_has_come_is_told_once_and_the_rest_is_asked_for_again() -> None:
    daemon, told = Daemon(), []
    first, second = threading.Event(), threading.Event()
    awaiting = Awaiting(daemon.exists, pause_seconds=0.001)
    awaiting.add(FIRST, lambda: (told.append(FIRST), first.set()), lambda: True)
    awaiting.add(SECOND, lambda: (told.append(SECOND), second.set()), lambda: True)
    daemon.stored.add(SECOND)
    assert second.wait(WAIT_SECONDS)
    assert not first.is_set()
    daemon.stored.add(FIRST)
    assert first.wait(WAIT_SECONDS)
    assert told == [SECOND, FIRST]
    awaiting.close()


def test_what_nobody_wants_any_more_is_given_back() -> None:
    daemon, wanted, back = Daemon(), [True], threading.Event()
    awaiting = Awaiting(daemon.exists, pause_seconds=0.001)
    awaiting.add(FIRST, back.set, lambda: wanted[0])
    wanted[0] = False
    assert back.wait(WAIT_SECONDS)
    again = threading.Event()
    daemon.stored.add(SECOND)
    awaiting.add(SECOND, again.set, lambda: True)  # after a pause a thread is there again
    assert again.wait(WAIT_SECONDS)
    awaiting.close()
