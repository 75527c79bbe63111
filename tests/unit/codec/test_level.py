"""Level names and their order."""

import pytest

from kvloom.codec.level import DRAFT, ECONOMY, EXACT, FINE, LOSSY_LEVELS, STANDARD, parse_level, require_level
from kvloom.errors import LevelNotStored, UnknownLevel


def test_levels_go_from_coarse_to_fine_and_exact_is_last() -> None:
    assert sorted([EXACT, FINE, STANDARD, DRAFT, ECONOMY]) == [*LOSSY_LEVELS, EXACT]
    assert LOSSY_LEVELS == (DRAFT, ECONOMY, STANDARD, FINE)
    assert [level.code for level in LOSSY_LEVELS] == list(range(len(LOSSY_LEVELS)))


@pytest.mark.parametrize("level", [*LOSSY_LEVELS, EXACT])
def test_a_name_parses_to_its_level(level) -> None:
    assert parse_level(level.name) is level
    assert str(level) == level.name


@pytest.mark.parametrize("name", ["", "Exact", "exact ", "0", "255", "standard\n", "x" * 1000])
def test_another_name_is_refused_in_a_short_line_that_lists_the_levels(name: str) -> None:
    with pytest.raises(UnknownLevel, match="draft, economy, standard, fine, exact") as caught:
        parse_level(name)
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


def test_a_level_that_is_not_stored_says_what_is() -> None:
    assert require_level(EXACT, (DRAFT, EXACT)) is EXACT
    with pytest.raises(LevelNotStored, match=r"standard is not stored.*draft, exact"):
        require_level(STANDARD, (DRAFT, EXACT))
    with pytest.raises(LevelNotStored, match="none"):
        require_level(EXACT, ())
