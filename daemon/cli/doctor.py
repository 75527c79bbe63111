"""``kvloom doctor``: find what is misconfigured, and the fix."""

import os

import click

from ...errors import ConfigError
from ..config_sources import gather
from ..machine import probe_machine
from ..settings import ConfigText
from .console import ExitCode, Stop, address_option, examples, json_option, print_json

__all__ = ["doctor"]

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@click.command(epilog=examples("kvloom doctor", "kvloom doctor --json | jq '.[] | select(.state != \"ok\")'"))
@address_option
@json_option
def doctor(address: str | None, as_json: bool) -> None:
    """Check the daemon, this installation and this machine. Exit code 1 where something is a problem."""
    from ..doctor import State, diagnose  # here: it loads the codec, which --help has no use for

    try:
        directory = gather(ConfigText(), os.environ).text.directory()
    except ConfigError:  # a finding of its own, below
        directory = ConfigText.from_environ(os.environ).directory()
    findings = diagnose(address, directory, probe_machine(directory), os.environ)
    if as_json:
        print_json(tuple(findings))
    else:
        for finding in findings:
            mark, colour = _MARKS[finding.state]
            click.echo(f"{click.style(mark, fg=colour)} {finding.check}: {finding.detail}")
            if finding.fix:
                click.echo(f"    fix: {finding.fix}")
    if any(finding.state is State.PROBLEM for finding in findings):
        raise Stop(ExitCode.FAILED)
