"""What ``kvloom serve-model`` and ``kvloom proxy`` have in common: a port, a key, a library."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ...clients.discovery import data_directory
from .console import json_option, print_json

__all__ = ["announcer", "chat_options", "library_path", "server_key"]

KEY_NAME = "chat.key"
LIBRARY_NAME = "library.sqlite"


def chat_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of both."""
    options = [
        click.option(
            "--port", type=click.IntRange(0, 65535), default=7119, show_default=True, help="0 takes a free one."
        ),
        click.option(
            "--key-file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="The key that callers need, on its first line.  [default: a new one]",
        ),
        click.option(
            "--library",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Where documents are kept by name.  [default: in the data directory]",
        ),
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


def server_key(key_file: Path | None) -> str:
    """The key of the file given, or a new one in this user's data directory."""
    from ..chat.server import own_key, read_key

    if key_file is not None:
        return read_key(key_file)
    return own_key(data_directory(os.environ) / KEY_NAME)


def library_path(given: Path | None) -> Path:
    """The library's file; its folder is there."""
    path = given or data_directory(os.environ) / LIBRARY_NAME
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def announcer(key_file: Path | None, *, as_json: bool) -> Callable[[int], None]:
    """Says, once there is a port, where to ask and where the key is."""

    def announce(port: int) -> None:
        url, key = f"http://127.0.0.1:{port}/v1", str(key_file or data_directory(os.environ) / KEY_NAME)
        if as_json:
            print_json({"url": url, "key_file": key})
        else:
            click.echo(f"key: {key}\nready: {url}")

    return announce
