"""How a client proves who it is and knows whom it talks to: its key, and the certificates that it trusts or shows.

A program of the user whose daemon it is needs neither: it reads the token that the daemon leaves beside its note, anew
for every start of a daemon.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .. import limits
from ..errors import ConfigError
from .discovery import DaemonNote, Endpoint, data_directory, is_loopback

if TYPE_CHECKING:
    import ssl

__all__ = [
    "API_KEY_VARIABLE",
    "CA_VARIABLE",
    "CLIENT_CERTIFICATE_VARIABLE",
    "CLIENT_KEY_VARIABLE",
    "TOKEN_NAME",
    "Access",
    "Trust",
    "find_access",
]

API_KEY_VARIABLE: Final = "KVLOOM_API_KEY"
CA_VARIABLE: Final = "KVLOOM_CA"
CLIENT_CERTIFICATE_VARIABLE: Final = "KVLOOM_CLIENT_CERTIFICATE"
CLIENT_KEY_VARIABLE: Final = "KVLOOM_CLIENT_KEY"
TOKEN_NAME: Final = "http.token"  # noqa: S105 - a file name


@dataclass(frozen=True, slots=True)
class Trust:
    """PEM files: ``ca`` has who may have signed the daemon's certificate (default: whom this system trusts).

    ``certificate`` and ``key`` are shown to a daemon that asks for them.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> "ssl.SSLContext":
        """What a TLS connection is made with; the daemon's name and certificate are always verified.

        Raises :class:`ConfigError` for files that cannot be used.
        """
        import ssl  # here: a client that talks to loopback needs none of it

        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(item) for item in (self.ca, self.certificate, self.key) if item is not None)
            raise ConfigError(f"certificates cannot be used ({files}): {error.strerror or error}") from error
        return context


@dataclass(frozen=True, slots=True)
class Access:
    """The ``credential`` to send, if any, and whom to trust.

    ``own`` is the data directory of this user's daemon where the credential comes from there, or may later.
    """

    endpoint: Endpoint
    credential: str | None = field(default=None, repr=False)
    trust: Trust = field(default_factory=Trust)
    own: Path | None = None

    @property
    def key(self) -> str | None:
        """The key that was given: whoever has one wants to be its tenant on the local socket too."""
        return self.credential if self.own is None else None

    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {} if self.credential is None else {"Authorization": f"Bearer {self.credential}"}

    def renewed(self) -> "Access | None":
        """Another access to try after a refusal: the daemon has been restarted and has a new token; else ``None``."""
        token = None if self.own is None else _own_token(self.endpoint, self.own)
        return None if token is None or token == self.credential else replace(self, credential=token)


def find_access(
    endpoint: Endpoint,
    *,
    api_key: str | None = None,
    trust: Trust | None = None,
    environ: Mapping[str, str] | None = None,
    data_dir: Path | None = None,
) -> Access:
    """The access to the daemon at ``endpoint``: ``api_key``, ``KVLOOM_API_KEY``, or the token of this user's daemon.

    Raises :class:`ConfigError` for a key that is none, and where it would be sent over a network in the clear.
    """
    variables = os.environ if environ is None else environ
    trust = trust or _trust(variables)
    key = api_key or variables.get(API_KEY_VARIABLE)
    if key:
        if len(key) > limits.CREDENTIAL_CHARS_MAX or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"API key of {len(key)} characters is none: kvloom keys create makes them")
        if not endpoint.secure and not is_loopback(endpoint.host):
            raise ConfigError(f"the API key would be sent to {endpoint} in the clear: use https://{endpoint}")
        return Access(endpoint, key, trust)
    directory = data_dir or data_directory(variables)
    return Access(endpoint, _own_token(endpoint, directory), trust, directory)


def _trust(variables: Mapping[str, str]) -> Trust:
    ca, certificate, key = (
        Path(variables[name]).expanduser() if variables.get(name) else None
        for name in (CA_VARIABLE, CLIENT_CERTIFICATE_VARIABLE, CLIENT_KEY_VARIABLE)
    )
    return Trust(ca, certificate, key)


def _own_token(endpoint: Endpoint, directory: Path) -> str | None:
    """The token of the daemon whose note is in ``directory``, if that is the one at ``endpoint``."""
    note = DaemonNote.read(directory)
    if note is None or endpoint not in (note.endpoint, note.grpc_endpoint):
        return None
    try:
        with (directory / TOKEN_NAME).open("rb") as file:
            return file.read(limits.CREDENTIAL_CHARS_MAX).decode("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
