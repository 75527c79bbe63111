from kvloom.kvstore.eviction import UNATTRIBUTED, ChunkAttributes
from kvloom.kvstore.eviction.placement import PlacementWatch
from kvloom.kvstore.key import StorageKey

PLACED = ChunkAttributes(StorageKey(bytes(32)), 256, 256)
BEHIND = ChunkAttributes(None, 256, 256)
SHORT = ChunkAttributes(None, 0, 100)


def changes(watch: PlacementWatch, *puts: ChunkAttributes) -> list[bool]:
    """What ``unplaced`` became, each time that it changed."""
    return [watch.unplaced for attributes in puts if watch.note(attributes)]


def test_clients_that_say_nothing_are_found_out_soon() -> None:
    watch = PlacementWatch()
    assert changes(watch, *[UNATTRIBUTED] * 31) == []
    assert changes(watch, UNATTRIBUTED) == [True]


def test_a_place_without_a_parent_before_it_is_not_said() -> None:
    assert changes(PlacementWatch(), *[BEHIND] * 1000) == [True]


def test_single_chunks_with_a_place_need_no_parent() -> None:
    assert changes(PlacementWatch(), *[SHORT] * 1000) == []


def test_first_chunks_of_prompts_of_three_change_nothing() -> None:
    assert changes(PlacementWatch(), *[UNATTRIBUTED, PLACED, PLACED] * 1000) == []


def test_it_changes_over_and_back_but_does_not_flutter() -> None:
    watch = PlacementWatch()
    assert changes(watch, *[UNATTRIBUTED] * 1000) == [True]
    assert changes(watch, *[UNATTRIBUTED, PLACED, PLACED] * 1000) == []
    assert changes(watch, *[PLACED] * 1000) == [False]
    assert changes(watch, *[UNATTRIBUTED, PLACED, PLACED] * 1000) == []
