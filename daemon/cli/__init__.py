"""The ``kvloom`` command: one file per verb, each imported only when it is used, so that ``--version`` is instant."""

import sys
from dataclasses import dataclass
from importlib import import_module

import click

from ... import __version__
from ...errors import KvloomError
from .console import ExitCode, Stop, fail

__all__ = ["VERBS", "Verb", "main"]


@dataclass(frozen=True, slots=True)
class Verb:
    """A command: its name (_ for -) is its module's and its function's; ``line`` is what ``kvloom --help`` says."""

    name: str
    line: str


VERBS = (
    Verb("serve", "Run the daemon."),
    Verb("config", "Show where each setting comes from; write an example."),
    Verb("demo", "Show what kvloom does, on a real model and real text."),
    Verb("keys", "Make, list and revoke API keys."),
    Verb("status", "What the daemon and its tiers hold."),
    Verb("health", "Whether a daemon serves; for probes."),
    Verb("top", "Watch the daemon: tiers, hit rates, bandwidth, tenants."),
    Verb("ls", "List stored chunks."),
    Verb("show", "What is stored under one key."),
    Verb("get", "Read a chunk into a file."),
    Verb("put", "Store a container file."),
    Verb("rm", "Forget chunks."),
    Verb("serve-model", "Serve a model over your documents, as OpenAI's API does."),
    Verb("proxy", "Put documents by name in front of a vLLM."),
    Verb("calibrate", "Learn a codec profile for a model from text."),
    Verb("bench", "Measure your daemon and its disk."),
    Verb("simulate", "Compare loading, recomputing and planning on traces and links."),
    Verb("scrub", "Have the daemon verify all it has on disk, now."),
    Verb("fsck", "Check the chunks on disk, without a daemon."),
    Verb("completion", "Print the completion script of a shell."),
    Verb("doctor", "Find what is misconfigured, and the fix."),
)


class _LazyGroup(click.Group):
    """Imports a verb's module when the verb is asked for; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = cmd_name.replace("-", "_")
        command = getattr(import_module(f".{module}", __name__), module)
        assert isinstance(command, click.Command), cmd_name  # noqa: S101 - a verb's module must define it
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb.name, verb.line) for verb in VERBS])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Run 'kvloom COMMAND --help' for the options and examples of a command.",
)
@click.version_option(__version__, "-V", "--version", prog_name="kvloom", message="%(prog)s %(version)s")
def cli() -> None:
    """Keep the KV caches of language models outside the engine, so that no text
    is prefilled twice.
    """


def main() -> None:
    """Entry point of the ``kvloom`` command: errors are one line, exit codes are :class:`ExitCode`."""
    try:
        cli.main(standalone_mode=False, prog_name="kvloom")
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(ExitCode.INTERRUPTED)
    except Stop as stop:
        sys.exit(stop.code)
    except KvloomError as error:
        sys.exit(fail(error, as_json="--json" in sys.argv))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(ExitCode.FAILED)
    except OSError as error:
        what = "" if error.filename is None else f"{error.filename}: "
        sys.exit(fail(KvloomError(f"{what}{(error.strerror or str(error)).lower()}"), as_json="--json" in sys.argv))
