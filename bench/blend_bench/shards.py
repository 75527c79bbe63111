"""What was measured so far, a line of JSON per question and strategy, so that a run can be killed and go on."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from json_lines import append_line, mend, whole_lines

from .strategies import Outcome

__all__ = ["Measured", "Shard", "read_shards"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One strategy at one ratio on one question."""

    model: str
    dataset: str
    index: int
    strategy: str
    ratio: float
    outcome: Outcome

    @property
    def key(self) -> tuple[str, str, int, str, float]:
        """What it is a measurement of."""
        return (self.model, self.dataset, self.index, self.strategy, self.ratio)


def read_shards(paths: Iterable[Path]) -> list[Measured]:
    """Everything in files of any number of runs; a last line cut short by a kill is passed over."""
    found = {}
    for path in paths:
        for fields in whole_lines(path):
            item = Measured(**{**fields, "outcome": Outcome(**fields["outcome"])})
            found[item.key] = item
    return list(found.values())


class Shard:
    """A file that measurements are appended to; ``done`` are the keys it holds."""

    def __init__(self, path: Path) -> None:
        self.done = {item.key for item in read_shards([path])}
        mend(path)
        self._path = path

    def add(self, item: Measured) -> None:
        """Append one measurement; it is in the file when this returns."""
        append_line(self._path, asdict(item))
        self.done.add(item.key)
