"""``kvloom serve``: run the daemon in the foreground."""

import asyncio
import os

import click

from .console import examples
from .setting_options import setting_options

__all__ = ["serve"]


@click.command(
    epilog=examples(
        "kvloom serve                               # sensible for this machine",
        "kvloom serve --memory 8GiB --ssd 200GiB    # more room",
        "kvloom serve --port 0 --data-dir /tmp/k    # any free port",
        "kvloom serve --codec cachegen              # lossy levels as in CacheGen",
        "kvloom serve --host 0.0.0.0 --tls-certificate cert.pem --tls-key key.pem",
    )
)
@setting_options
@click.option("--json", "as_json", is_flag=True, help="The same as --log-format json.")
def serve(as_json: bool, config_file: str | None, **flags: str | None) -> None:
    """Run the daemon until it is told to stop (Ctrl-C or SIGTERM).

    Every option is also an environment variable (--log-level is KVLOOM_LOG_LEVEL) and a key of the configuration file
    (log_level); 'kvloom config explain' shows which of them holds. On SIGTERM the daemon finishes the
    requests it has, writes what is only in memory to disk, and ends. On SIGHUP it reads keys and certificates anew; a
    change of the credentials file it notices by itself.
    """
    # Imported here: only a daemon needs a web server, and --help should not wait for one.
    from ..allocator import bound_heap
    from ..config_sources import gather
    from ..machine import probe_machine, require_linux
    from ..settings import ConfigText, LogFormat

    require_linux()
    from ..server import run_daemon

    bound_heap()
    if as_json:
        flags["log_format"] = LogFormat.JSON.value
    gathered = gather(ConfigText(**flags), os.environ, file=config_file)
    config = gathered.resolve(probe_machine(gathered.text.directory()))
    asyncio.run(run_daemon(config))
