from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3

from kvloom import limits
from kvloom.codec.container import NO_PROFILE, Container, verify
from kvloom.codec.level import DRAFT, ECONOMY, EXACT, Level
from kvloom.errors import BodyTooLarge, LayoutMismatch
from kvloom.kvstore.tiered.merge import covers, merge_containers

Make = Callable[..., Any]
OTHER_PROFILE = blake3(b"another profile").digest()


def segments(data: Any, level: Level) -> list[bytes]:
    container = Container.parse(data)
    return [
        bytes(container.segment(item.level, item.layer, item.kind))
        for item in container.header.segments
        if item.level == level
    ]


def test_new_container_that_holds_all_of_the_old_replaces_it(chunk: Make) -> None:
    old = chunk(1, (DRAFT,)).payload
    for wanted in ((DRAFT,), (DRAFT, ECONOMY), (DRAFT, EXACT)):
        new = chunk(1, wanted, seed=5).payload
        assert merge_containers(old, new) is new


def test_old_container_that_holds_all_of_the_new_stays(chunk: Make) -> None:
    old = chunk(1, (DRAFT, ECONOMY, EXACT)).payload
    assert merge_containers(old, chunk(1, (DRAFT,)).payload) is old
    assert merge_containers(old, chunk(1, (DRAFT, EXACT), layer_range=range(1, 2)).payload) is old


def test_lossy_and_exact_are_joined_whichever_came_first(chunk: Make) -> None:
    lossy = chunk(1, (DRAFT, ECONOMY)).payload
    exact = chunk(1, (EXACT,), profile_digest=NO_PROFILE, seed=5).payload
    for old, new in ((lossy, exact), (exact, lossy)):
        both = merge_containers(old, new)
        header = verify(both, content_key=chunk(1).key)
        assert header.levels == (DRAFT, ECONOMY, EXACT)
        assert header.profile_digest == verify(lossy).profile_digest
        assert [segments(both, level) for level in (DRAFT, ECONOMY)] == [
            segments(lossy, level) for level in (DRAFT, ECONOMY)
        ]
        assert segments(both, EXACT) == segments(exact, EXACT)


def test_longer_lossy_stream_of_one_profile_stays(chunk: Make) -> None:
    old = chunk(1, (DRAFT, ECONOMY)).payload
    new = chunk(1, (DRAFT, EXACT), seed=5).payload
    both = merge_containers(old, new)
    assert verify(both).levels == (DRAFT, ECONOMY, EXACT)
    assert segments(both, DRAFT) == segments(old, DRAFT)
    assert segments(both, EXACT) == segments(new, EXACT)


def test_newer_lossy_stream_wins_over_one_of_another_profile(chunk: Make) -> None:
    old = chunk(1, (DRAFT, ECONOMY, EXACT)).payload
    new = chunk(1, (DRAFT,), seed=5, profile_digest=OTHER_PROFILE).payload
    both = merge_containers(old, new)
    header = verify(both)
    assert header.levels == (DRAFT, EXACT)
    assert header.profile_digest == OTHER_PROFILE
    assert segments(both, DRAFT) == segments(new, DRAFT)
    assert segments(both, EXACT) == segments(old, EXACT)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"tokens": 5}, {"tokens": 6}, "5 tokens, the container has 6"),
        ({"first_position": 7}, {"first_position": 300}, "computed at position 7, the container at 300"),
        ({"head_dim": 8}, {"head_dim": 16}, "stored with layout"),
        (
            {"layer_range": range(2)},
            {"layer_range": range(1, 3)},
            "layers 0-1 at draft, the container put has layers 1-2",
        ),
    ],
)
def test_what_cannot_be_one_container_is_refused(chunk: Make, old: Any, new: Any, words: str) -> None:
    with pytest.raises(LayoutMismatch, match=words):
        merge_containers(chunk(1, (DRAFT,), **old).payload, chunk(1, (EXACT,), **new).payload)


@pytest.mark.parametrize("stored_first", [True, False])
def test_what_is_whole_in_itself_may_be_of_another_position(chunk: Make, *, stored_first: bool) -> None:
    """A chunk computed alone has no place of its own: a container that replaces another brings its position along."""
    few, all_levels = chunk(1, (DRAFT,), first_position=7), chunk(1, (DRAFT, EXACT), first_position=0)
    if stored_first:
        with pytest.raises(LayoutMismatch, match="computed at position 0, the container at 7"):
            merge_containers(all_levels.payload, few.payload)
    else:
        assert merge_containers(few.payload, all_levels.payload) is all_levels.payload


def test_joined_container_past_the_limit_is_refused(chunk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = chunk(1, (DRAFT,)).payload, chunk(1, (EXACT,)).payload
    monkeypatch.setattr(limits, "CONTAINER_BYTES_MAX", max(len(old), len(new)))
    with pytest.raises(BodyTooLarge):
        merge_containers(old, new)


def test_covers_looks_at_levels_and_layers(chunk: Make) -> None:
    full, coarse = verify(chunk(1).payload), verify(chunk(1, (DRAFT,)).payload)
    part = verify(chunk(1, layer_range=range(1, 3)).payload)
    assert covers(full, coarse)
    assert covers(full, part)
    assert not covers(coarse, full)
    assert not covers(part, full)
