"""The server's side of TLS."""

import ssl

from ..errors import ConfigError
from .config import TlsFiles

__all__ = ["load_certificates", "server_context"]


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """A context for a server with these files: TLS 1.2 or newer, and client certificates where a CA for them is given.

    Blocks. Raises :class:`ConfigError` for files that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_certificates(context, files)
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def load_certificates(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Read the files, for the connections made from now on; raises :class:`ConfigError` and changes nothing."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key, password=_no_password)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(str(item) for item in (files.certificate, files.key, files.client_ca) if item is not None)
        raise ConfigError(f"TLS files cannot be used ({names}): {error.strerror or error}") from error


def _no_password() -> str:
    """Instead of asking at the terminal: an encrypted key is an error here."""
    raise ssl.SSLError("the key is encrypted")
