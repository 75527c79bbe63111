"""The scheduler's look-up: all shards or none, and one that is not answered is not repeated for a while."""

from collections.abc import Sequence

from kvloom import limits
from kvloom.clients.sequence import ShardedChunk
from kvloom.clients.vllm.lookup import ChunkLookup
from kvloom.kvstore.key import ContentKey


def chunk(*names: bytes) -> ShardedChunk:
    return ShardedChunk(tuple(ContentKey(name.ljust(32)) for name in names), None, 0, 8)


class Daemon:
    """Answers after ``seconds`` of a clock of its own."""

    def __init__(self, *stored: bytes) -> None:
        self.stored = {name.ljust(32) for name in stored}
        self.seconds, self.now, self.asked = 0.001, 100.0, 0

    def clock(self) -> float:
        return self.now

    def exists(self, keys: Sequence[ContentKey]) -> list[bool]:
        self.asked += 1
        self.now += self.seconds
        return [key in self.stored and self.seconds < 0.05 for key in keys]


def test_a_chunk_is_there_when_all_its_shards_are() -> None:
    daemon = Daemon(b"a0", b"a1", b"b0", b"c1")
    lookup = ChunkLookup(daemon.exists, 0.05, clock=daemon.clock)
    assert lookup.stored([chunk(b"a0", b"a1"), chunk(b"b0", b"b1"), chunk(b"c0", b"c1")]) == [True, False, False]
    assert lookup.stored([]) == []


def test_a_silent_daemon_is_asked_ever_less_often_and_again_at_once_when_it_answers() -> None:
    daemon = Daemon(b"a0")
    lookup = ChunkLookup(daemon.exists, 0.05, clock=daemon.clock)
    daemon.seconds = 0.05
    pauses = []
    for _ in range(8):
        assert lookup.stored([chunk(b"a0")]) is None
        asked = daemon.asked
        assert lookup.stored([chunk(b"a0")]) is None
        assert daemon.asked == asked
        began = daemon.now
        while lookup.paused:
            daemon.now += 0.5
        pauses.append(daemon.now - began)
    assert pauses[0] == limits.ENGINE_PAUSE_SECONDS_MIN
    assert pauses == sorted(pauses)
    assert pauses[-1] == limits.ENGINE_PAUSE_SECONDS_MAX
    daemon.seconds = 0.001
    assert lookup.stored([chunk(b"a0")]) == [True]
    daemon.seconds = 0.05
    assert lookup.stored([chunk(b"a0")]) is None
    daemon.now += limits.ENGINE_PAUSE_SECONDS_MIN
    assert not lookup.paused


def test_a_slow_answer_is_an_answer() -> None:
    daemon = Daemon(b"a0")
    lookup = ChunkLookup(daemon.exists, 0.05, clock=daemon.clock)
    daemon.seconds = 0.049
    assert lookup.stored([chunk(b"a0")]) == [True]
    assert not lookup.paused
