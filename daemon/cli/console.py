"""What every verb shares: its common options, how it prints, and how it ends."""

import json
import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

import click

from ...errors import ConfigError, DaemonUnavailable, InvalidRequest, KvloomError, NotFound, Unauthenticated

__all__ = [
    "ExitCode",
    "SecondsRange",
    "Stop",
    "address_option",
    "examples",
    "fail",
    "json_option",
    "print_json",
    "say",
]

Function = TypeVar("Function", bound=Callable[..., Any])


class ExitCode(IntEnum):
    """How a command ends; scripts may rely on these."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NO_DAEMON = 4
    INTERRUPTED = 130


class SecondsRange(click.FloatRange):
    """A number of seconds within bounds, and a number at all: NaN is within none and click takes it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds; ends in a usage error for what is none."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is not in the range {self.min}<=x<={self.max}.", param, ctx)
        return seconds


class Stop(Exception):
    """End the command with ``code``; whatever had to be said has been said."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def address_option(function: Function) -> Function:
    """``--address``: which daemon."""
    return click.option(
        "--address",
        metavar="HOST:PORT",
        help="The daemon's address, or https://HOST:PORT; its key is in $KVLOOM_API_KEY.  "
        "[default: $KVLOOM_URL, or the daemon of this user that is running]",
    )(function)


def json_option(function: Function) -> Function:
    """``--json``: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs to read.")(function)


def examples(*lines: str) -> str:
    """An epilog of examples that click does not re-wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(record: object) -> None:
    """A record as indented JSON on standard output."""
    from ...clients import wire  # here, so that --version and --help load no codec

    click.echo(json.dumps(wire.dump(record), indent=2))


def say(line: str) -> None:
    """A line for the person at the terminal: on standard error, so that output can be piped."""
    click.echo(line, err=True)


def _hint(error: KvloomError) -> str:
    if isinstance(error, Unauthenticated):
        return "; set KVLOOM_API_KEY to one"
    return "; start one with 'kvloom serve'" if isinstance(error, DaemonUnavailable) else ""


def fail(error: KvloomError, *, as_json: bool) -> ExitCode:
    """Report ``error`` in one line (as JSON on standard output for programs) and give the exit code it means."""
    if as_json:
        click.echo(json.dumps({"error": error.code, "message": str(error)}))
    else:
        click.echo(f"kvloom: {error}{_hint(error)}", err=True)
    if isinstance(error, DaemonUnavailable):
        return ExitCode.NO_DAEMON
    if isinstance(error, NotFound):
        return ExitCode.NOT_FOUND
    if isinstance(error, (ConfigError, InvalidRequest)):
        return ExitCode.USAGE
    return ExitCode.FAILED
