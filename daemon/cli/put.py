"""``kvloom put``: store container files."""

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from ... import limits
from ...clients import KvloomClient
from ...codec.container import ContainerHeader, parse_header
from ...errors import InvalidRequest, KvloomError
from ...kvstore.key import ContentKey
from ...kvstore.tier import Ack
from ..config import format_size
from .console import address_option, examples, json_option, print_json, say

__all__ = ["put"]


@dataclass(frozen=True, slots=True)
class _Stored:
    file: str
    key: bytes
    container_bytes: int
    ack: Ack


@click.command(
    epilog=examples(
        "kvloom put chunk.kvlc",
        "kvloom put --ack disk *.kvlc",
        "kvloom get 3fa9 -o - | kvloom put --address 127.0.0.1:7200 -",
    )
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option(
    "--ack",
    type=click.Choice([ack.value for ack in Ack]),
    default=Ack.DISK.value,
    show_default=True,
    help="Return once it is this safe.",
)
@address_option
@json_option
def put(files: tuple[Path, ...], ack: str, address: str | None, as_json: bool) -> None:
    """Store container files (as 'kvloom get' writes them) under the keys they name. '-' is standard input."""
    lines: list[_Stored] = []
    with KvloomClient(address) as client:
        for file in files:
            container = _read(file)
            header = _header(file, container)
            reply = client.put(ContentKey(header.content_key), container, ack=Ack(ack))
            lines.append(_Stored(str(file), header.content_key, len(container), reply.ack))
            if not as_json:
                say(f"{header.content_key.hex()[:12]}  {format_size(len(container)):>10}  {reply.ack}  {file}")
    if as_json:
        print_json(tuple(lines))


def _read(file: Path) -> bytes:
    try:
        if str(file) == "-":
            return sys.stdin.buffer.read(limits.CONTAINER_BYTES_MAX + 1)
        with file.open("rb") as stream:
            return stream.read(limits.CONTAINER_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from error


def _header(file: Path, container: bytes) -> ContainerHeader:
    try:
        return parse_header(container)
    except KvloomError as error:
        raise type(error)(f"{file}: {error}") from error
