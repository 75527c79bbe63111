"""What a daemon starts with to tell callers apart: its credentials file, its tenants, and the token of its user."""

import base64
import secrets

import structlog

from ..errors import ConfigError
from ..kvstore.key import KEY_BYTES
from ..kvstore.namespace import load_or_create_root_secret, load_root_secret
from .authenticator import utc_now
from .config import DaemonConfig, HttpAuth
from .credentials import Credentials
from .credentials_file import CREDENTIALS_NAME, CredentialsFile
from .tenants import TenantTable

__all__ = ["ROOT_SECRET_NAME", "credentials_file", "http_token", "load_tenants"]

ROOT_SECRET_NAME = "root.secret"  # noqa: S105 - a file name
_log = structlog.get_logger("kvloom.daemon")


def credentials_file(config: DaemonConfig) -> CredentialsFile:
    """The file of tenants and keys: the one configured, or that in the data directory."""
    return CredentialsFile(config.credentials or config.data_dir / CREDENTIALS_NAME)


def http_token(config: DaemonConfig) -> str | None:
    """A new token for the programs of this user: one per start, so that one which leaked is soon worth nothing.

    None where no token is asked for, and beyond loopback, where keys are.
    """
    if not config.loopback or config.http_auth is not HttpAuth.TOKEN:
        return None
    return f"kvl_local_{base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).rstrip(b'=').decode()}"


def load_tenants(config: DaemonConfig, file: CredentialsFile) -> TenantTable:
    """The tenants of a daemon that starts. Blocks.

    Raises :class:`ConfigError` for a credentials file that does not hold or was configured and is not there, for two
    secrets that differ, and where other machines could connect and there is no key for them.
    """
    credentials = file.read()
    if config.credentials is not None and not file.path.exists():
        raise ConfigError(f"credentials file {file.path} is not there: kvloom keys create --credentials makes one")
    now = utc_now()
    if not config.loopback and not any(key.state(now) == "valid" for key in credentials.keys.values()):
        raise ConfigError(
            f"host {config.host} is not a loopback address and no key in {file.path} holds: "
            "make one with 'kvloom keys create --tenant NAME'"
        )
    return TenantTable(
        _secret(config, credentials), credentials, config.codec, config.ttl_seconds, config.network_quota_bytes
    )


def _secret(config: DaemonConfig, credentials: Credentials) -> bytes:
    """What namespaces are derived from: the file configured, the credentials, or the daemon's own secret."""
    own = config.data_dir / ROOT_SECRET_NAME
    shared = credentials.namespace_secret
    if config.root_secret is not None:
        secret = load_root_secret(config.root_secret)
        if shared not in (None, secret):
            raise ConfigError(f"root secret {config.root_secret} and namespace_secret of the credentials differ")
        return secret
    if shared is None:
        return load_or_create_root_secret(own)
    if own.exists() and load_root_secret(own) != shared:
        _log.warning("namespace_secret is not what was stored under here before: those chunks are not found any more")
    return shared
