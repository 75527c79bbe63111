"""``kvloom completion``: the script that makes a shell complete this command."""

import click
from click.shell_completion import get_completion_class

from .console import examples

__all__ = ["completion"]

_PROGRAM = "kvloom"
_VARIABLE = "_KVLOOM_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")


@click.command(
    epilog=examples(
        "kvloom completion bash > ~/.local/share/bash-completion/completions/kvloom",
        "kvloom completion zsh > ~/.zfunc/_kvloom        # where fpath looks",
        "kvloom completion fish > ~/.config/fish/completions/kvloom.fish",
    )
)
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL: verbs, options, and what may be said for them."""
    kind = get_completion_class(shell)
    assert kind is not None, shell  # noqa: S101 - click has all of them
    script = kind(context.find_root().command, {}, _PROGRAM, _VARIABLE)
    # Not script.source(): that asks an installed bash for its version, and the script may be for another machine.
    click.echo(script.source_template % script.source_vars())
