"""Files of text that users name: what cannot be read is refused with the file, the line and the reason."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..errors import InvalidRequest

__all__ = ["json_records", "opened_text"]


@contextmanager
def opened_text(file: Path) -> Iterator[TextIO]:
    """``file``, to be read as UTF-8. Raises :class:`InvalidRequest`, naming it, where that cannot be done."""
    try:
        with file.open(encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is not text in UTF-8: byte {error.start} of what was read") from error


def json_records(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the fields of each of the JSON ``lines`` of ``file`` that is not blank.

    What is no object has no fields. Raises :class:`InvalidRequest`, naming file and line, for what is not JSON.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"{file}, line {number} is not JSON: {error}") from error
        yield number, record if isinstance(record, dict) else {}
