"""What was measured so far, a line of JSON per question and strategy, so that a run can be killed and go on."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

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
        for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
            if line.endswith("\n"):
                fields = json.loads(line)
                item = Measured(**{**fields, "outcome": Outcome(**fields["outcome"])})
                found[item.key] = item
    return list(found.values())


class Shard:
    """A file that measurements are appended to; ``done`` are the keys it holds."""

    def __init__(self, path: Path) -> None:
        self.done = {item.key for item in read_shards([path])}
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1])
        self._path = path

    def add(self, item: Measured) -> None:
        """Append one measurement; it is in the file when this returns."""
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(item)) + "\n")
        self.done.add(item.key)
