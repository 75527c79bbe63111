"""Results a line of JSON each, appended as they come: a run that is killed loses at most the line it was writing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["append_line", "mend", "whole_lines"]


def whole_lines(path: Path) -> Iterator[Any]:
    """What the lines of ``path`` hold; one cut short by a kill is passed over, a file that is not there is empty."""
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            yield json.loads(line)


def mend(path: Path) -> None:
    """Cut off what a kill left of a last line, so that the next one begins a line."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])


def append_line(path: Path, record: Any) -> None:
    """Append ``record``; it is in the file when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
