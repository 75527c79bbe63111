"""The flags of a daemon's settings, made from their table, for every verb that takes them."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..settings import SETTINGS, Kind, Setting

__all__ = ["config_option", "setting_options"]

Function = TypeVar("Function", bound=Callable[..., Any])


def config_option(function: Function) -> Function:
    """``--config``: which configuration file; its value is the parameter ``config_file``."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(),
        help="Configuration file.  [default: $KVLOOM_CONFIG, or kvloom.toml among this user's settings, if there]",
    )(function)


def setting_options(function: Function) -> Function:
    """``--config``, and one flag per setting. Values stay text: they are read in one place, for every layer."""
    for item in reversed(SETTINGS):
        function = _option(item)(function)
    return config_option(function)


def _option(item: Setting) -> Callable[[Function], Function]:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(choice) for choice in item.choices if choice.startswith(incomplete)]

    path = item.kind in (Kind.FILE, Kind.DIRECTORY)
    return click.option(
        item.flag,
        item.name,
        metavar=item.metavar,
        type=click.Path(file_okay=item.kind is Kind.FILE) if path else str,
        shell_complete=complete if item.choices else None,
        help=f"{item.help}  [default: {item.default}]",
    )
