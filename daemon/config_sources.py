"""Where settings are said: the configuration file, then the environment, then flags; the last one to speak holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Final

import platformdirs

from .. import limits
from ..clients.access import API_KEY_VARIABLE, CA_VARIABLE, CLIENT_CERTIFICATE_VARIABLE, CLIENT_KEY_VARIABLE
from ..clients.discovery import ADDRESS_VARIABLE, URL_VARIABLE
from ..clients.patience import LOOKUP_SECONDS_VARIABLE
from ..errors import ConfigError
from ..kvstore.network import PASSWORD_VARIABLE, USERNAME_VARIABLE, parse_network
from .config import DaemonConfig, format_size, resolve_config
from .config_file import ConfigDocument, did_you_mean, parse_config_file
from .machine import Machine
from .settings import SETTINGS, ConfigText, Kind, Setting

__all__ = [
    "CONFIG_VARIABLE",
    "Explained",
    "Gathered",
    "Layer",
    "Origin",
    "default_config_path",
    "explain",
    "gather",
    "unknown_variables",
]

CONFIG_VARIABLE: Final = "KVLOOM_CONFIG"
_PREFIX: Final = "KVLOOM_"
_FILE_NAME: Final = "kvloom.toml"
_NOT_SETTINGS: Final = (
    CONFIG_VARIABLE,
    ADDRESS_VARIABLE,
    URL_VARIABLE,
    API_KEY_VARIABLE,
    CA_VARIABLE,
    CLIENT_CERTIFICATE_VARIABLE,
    CLIENT_KEY_VARIABLE,
    LOOKUP_SECONDS_VARIABLE,
    USERNAME_VARIABLE,
    PASSWORD_VARIABLE,
)
_HIDDEN: Final = "(hidden)"


class Layer(StrEnum):
    """Who may say a value, from the weakest to the strongest."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the value of a setting was said; ``place`` is a line of a file, a variable or a flag."""

    layer: Layer
    place: str = ""

    def __str__(self) -> str:
        return self.place or self.layer.value


@dataclass(frozen=True, slots=True)
class Gathered:
    """What all layers together say, and where each value was said. ``file`` is the file that was read, if any."""

    text: ConfigText
    origins: Mapping[str, Origin]
    file: Path | None = None

    def resolve(self, machine: Machine) -> DaemonConfig:
        """:func:`.resolve_config`, whose :class:`ConfigError` begins with a setting's name, and where it was said."""
        try:
            return resolve_config(self.text, machine)
        except ConfigError as error:
            line = str(error)
            origin = self.origins.get(line.split(" ", 1)[0].rstrip(":"))
            if origin is None or origin.layer is Layer.DEFAULT:
                raise
            raise ConfigError(f"{line} (said in {origin})") from error


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting as it holds: its value for people, and where it was said (``default`` where nowhere)."""

    name: str
    value: str
    layer: Layer
    source: str
    default: str
    limits: str


def default_config_path() -> Path:
    """The file that is read where none is named, if it is there."""
    return platformdirs.user_config_path("kvloom") / _FILE_NAME


def gather(flags: ConfigText, environ: Mapping[str, str], *, file: str | None = None) -> Gathered:
    """What ``file`` (else ``KVLOOM_CONFIG``, else :func:`default_config_path`), ``environ`` and ``flags`` say. Blocks.

    Raises :class:`ConfigError` for a file that was named and is not there, cannot be read, or does not hold.
    """
    named = file or environ.get(CONFIG_VARIABLE) or None
    path = default_config_path() if named is None else Path(named).expanduser().absolute()
    document = _read(path, required=named is not None)
    variables = ConfigText.from_environ(environ)
    layers = (flags, variables, document.text if document is not None else ConfigText())
    origins: dict[str, Origin] = {}
    for item in SETTINGS:
        if getattr(flags, item.name) is not None:
            origins[item.name] = Origin(Layer.FLAG, item.flag)
        elif getattr(variables, item.name) is not None:
            origins[item.name] = Origin(Layer.ENVIRONMENT, item.variable)
        elif document is not None and item.name in document.lines:
            origins[item.name] = Origin(Layer.FILE, f"{path}:{document.lines[item.name]}")
        else:
            origins[item.name] = Origin(Layer.DEFAULT)
    text = layers[0].over(layers[1]).over(layers[2])
    return Gathered(text, MappingProxyType(origins), None if document is None else path)


def explain(gathered: Gathered, machine: Machine) -> list[Explained]:
    """Every setting as it holds on ``machine``; what is secret is not in it. Raises what :meth:`.resolve` raises."""
    config = gathered.resolve(machine)
    return [
        Explained(
            item.name,
            _shown(item, config),
            gathered.origins[item.name].layer,
            str(gathered.origins[item.name]),
            item.default,
            item.limits,
        )
        for item in SETTINGS
    ]


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """``KVLOOM_*`` variables that mean nothing, and for each the one that was probably meant."""
    known = [item.variable for item in SETTINGS] + list(_NOT_SETTINGS)
    unknown = sorted(name for name in environ if name.startswith(_PREFIX) and name not in known)
    return {name: did_you_mean(name, known) for name in unknown}


def _read(path: Path, *, required: bool) -> ConfigDocument | None:
    try:
        with path.open("rb") as stream:
            data = stream.read(limits.CONFIG_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if required:
            raise ConfigError(f"configuration file {path} is not there: kvloom config init makes one") from None
        return None
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {(error.strerror or '').lower()}") from error
    return parse_config_file(data, str(path))


def _shown(item: Setting, config: DaemonConfig) -> str:
    """The value of one setting as people write it; what may hold a password without that."""
    holder, _, last = item.effective.rpartition(".")
    owner = attrgetter(holder)(config) if holder else config
    value = None if owner is None else getattr(owner, last)
    if value is None:
        return "never" if item.kind is Kind.TIME else "none"
    if item.secret:
        return str(parse_network(str(value))) if item.name == "network" else _HIDDEN
    if item.kind is Kind.SIZE:
        return format_size(value) if value else "none"
    if item.kind is Kind.TIME:
        return f"{value:.0f} s"
    return str(value)
