"""The files of the page, as they are sent: read once, with headers that let a browser run these and nothing else."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from ..http_conditions import entity_tag

__all__ = ["HEADERS", "IMAGE_TYPE", "PAGE", "PAGE_TYPE", "SCRIPT_TYPE", "STYLE_TYPE", "StaticFile", "static_file"]

PAGE: Final = "index.html"
PAGE_TYPE: Final = "text/html"
STYLE_TYPE: Final = "text/css"
SCRIPT_TYPE: Final = "text/javascript"
IMAGE_TYPE: Final = "image/svg+xml"
_TYPES: Final = {".html": PAGE_TYPE, ".css": STYLE_TYPE, ".js": SCRIPT_TYPE, ".svg": IMAGE_TYPE}
_FOLDER: Final = Path(__file__).parent / "static"

HEADERS: Final = {
    "Content-Security-Policy": "; ".join((
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}  # fmt: skip
"""Of every answer below ``/dashboard``; what has figures in it is not to be kept at all."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One of them, and the tag of these very bytes."""

    media: str
    data: bytes
    tag: str


def static_file(name: str) -> StaticFile | None:
    """The file called ``name``, ``None`` where there is none; a name that is not in the folder leads nowhere."""
    return _files().get(name)


@cache
def _files() -> dict[str, StaticFile]:
    files = {}
    for path in _FOLDER.iterdir():
        data = path.read_bytes()
        if path.suffix in _TYPES:
            files[path.name] = StaticFile(_TYPES[path.suffix], data, entity_tag(data))
    return files
