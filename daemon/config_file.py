"""The configuration file: TOML with one key per setting, read strictly, and written as a commented example. Pure."""

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from .. import limits
from ..errors import ConfigError
from .settings import SETTINGS, ConfigText, Kind, Setting

__all__ = ["ConfigDocument", "commented_example", "did_you_mean", "parse_config_file"]

_CREDENTIALS_TABLES: Final = ("tenants", "keys")
_NUMBERS: Final = frozenset({Kind.PORT, Kind.SIZE, Kind.TIME})


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """What a file says, and on which line (from 1) it says each setting."""

    text: ConfigText = field(default_factory=ConfigText)
    lines: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


def parse_config_file(data: bytes, name: str) -> ConfigDocument:
    """What the file called ``name`` says; :class:`ConfigError` names the line of what cannot be used."""
    if len(data) > limits.CONFIG_FILE_BYTES_MAX:
        raise ConfigError(f"{name} has {len(data)} bytes or more, the limit is {limits.CONFIG_FILE_BYTES_MAX}")
    try:
        source = data.decode()
        document = tomllib.loads(source)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{name} is not TOML: {error}") from error
    known = {item.name: item for item in SETTINGS}
    lines = {key: _line_of(source, key) for key in document}
    texts: dict[str, str] = {}
    for key, value in document.items():
        where = f"{name}:{lines[key]}"
        if key in _CREDENTIALS_TABLES:
            raise ConfigError(f"{where}: [{key}] stands in the credentials file, which the setting credentials names")
        if key not in known:
            raise ConfigError(f"{where}: {key[:40]!r} is not a setting; {did_you_mean(key, known)}")
        texts[key] = _text(where, known[key], value)
    return ConfigDocument(ConfigText(**texts), MappingProxyType(lines))


def commented_example() -> str:
    """A file that says nothing yet: every setting commented out, with what it is, its limits and its default."""
    blocks = [
        "# Configuration of kvloom. Environment variables (KVLOOM_MEMORY) beat this file, flags (--memory) beat both.\n"
        "# kvloom config explain shows what holds and where it was said.\n"
    ]
    for item in SETTINGS:
        limit = f" Limits: {item.limits}." if item.limits else ""
        blocks.append(f"# {item.help}\n#{limit} Default: {item.default}.\n# {item.name} = {_quoted(item)}\n")
    return "\n".join(blocks)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The known name nearest to ``name``, or all of them where none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def _quoted(item: Setting) -> str:
    return item.example if item.kind is Kind.PORT else f'"{item.example}"'


def _text(where: str, item: Setting, value: Any) -> str:
    """A value as :class:`ConfigText` has it; a boolean is no number."""
    if isinstance(value, str):
        if not value:
            raise ConfigError(f"{where}: {item.name} is empty: leave the line out")
        return value
    if type(value) is int and item.kind in _NUMBERS:
        return str(value)
    wanted = "text or a whole number" if item.kind in _NUMBERS else "text"
    raise ConfigError(f"{where}: {item.name} is {str(value)[:40]!r} of type {type(value).__name__}, must be {wanted}")


def _line_of(source: str, key: str) -> int:
    """The first line that begins with ``key``, as a key or as a table."""
    quoted = re.escape(key)
    match = re.search(rf"^[ \t]*\[{{0,2}}[ \t]*[\"']?{quoted}[\"']?[ \t]*[=.\]]", source, re.MULTILINE)
    return 1 if match is None else source.count("\n", 0, match.start()) + 1
