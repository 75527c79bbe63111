"""A daemon that keeps silent is asked ever less often, and as before once it has answered."""

from kvloom import limits
from kvloom.clients.silence import Silence


def test_pauses_grow_up_to_their_limit_and_end_with_an_answer() -> None:
    now = [50.0]
    silence = Silence(clock=lambda: now[0])
    assert not silence.lasts
    pauses = []
    for _ in range(8):
        silence.note()
        began = now[0]
        while silence.lasts:
            now[0] += 0.5
        pauses.append(now[0] - began)
    assert pauses[0] == limits.ENGINE_PAUSE_SECONDS_MIN
    assert pauses == sorted(pauses)
    assert pauses[-1] == limits.ENGINE_PAUSE_SECONDS_MAX
    silence.end()
    silence.note()
    now[0] += limits.ENGINE_PAUSE_SECONDS_MIN
    assert not silence.lasts
