"""``kvloom serve``: run the daemon in the foreground."""

import asyncio
import os

import click

from .console import examples

__all__ = ["serve"]


@click.command(
    epilog=examples(
        "kvloom serve                               # sensible for this machine",
        "kvloom serve --memory 8GiB --ssd 200GiB    # more room",
        "kvloom serve --port 0 --data-dir /tmp/k    # any free port",
        "kvloom serve --codec cachegen          # lossy levels as CacheGen codes them",
        "kvloom serve --host 0.0.0.0 --tls-certificate cert.pem --tls-key key.pem",
    )
)
@click.option("--host", help="Address to listen on; beyond loopback with TLS and keys.  [default: 127.0.0.1]")
@click.option("--port", help="Port; 0 takes a free one.  [default: 7117]")
@click.option("--grpc-port", metavar="PORT", help="Serve gRPC there too; 0 takes a free one.  [default: off]")
@click.option("--data-dir", metavar="DIR", help="Where chunks are kept.  [default: this user's data directory]")
@click.option("--memory", metavar="SIZE", help="Memory tier.  [default: a quarter of what is free, at most 4GiB]")
@click.option("--ssd", metavar="SIZE", help="SSD tier; 0 for none.  [default: a fifth of free disk, at most 64GiB]")
@click.option("--network", metavar="URL", help="Shared store: valkey://…, s3://… or mooncake://….  [default: none]")
@click.option("--root-secret", metavar="FILE", help="32 random bytes that all daemons of one shared store have.")
@click.option("--credentials", metavar="FILE", help="Tenants and keys.  [default: DATA_DIR/credentials.toml]")
@click.option("--http-auth", metavar="HOW", help="Without a key on loopback: token or off.  [default: token]")
@click.option("--tls-certificate", metavar="FILE", help="PEM file of the certificate and its chain.  [default: none]")
@click.option("--tls-key", metavar="FILE", help="PEM file of its private key.")
@click.option("--tls-client-ca", metavar="FILE", help="Who must have signed clients' certificates.  [default: none]")
@click.option("--codec", metavar="NAME", help="Of lossy levels: kvloom or cachegen.  [default: kvloom]")
@click.option("--ssd-admission", metavar="RULE", help="always, or second-use to spare the SSD.  [default: always]")
@click.option("--eviction", metavar="POLICY", help="gittins, lru, … or memory=gittins,ssd=lru.  [default: gittins]")
@click.option("--ttl", metavar="TIME", help="How long a chunk is kept: 90, 15m, 12h, 30d or never.  [default: never]")
@click.option("--network-quota", metavar="SIZE", help="Of a namespace on the network store.  [default: off]")
@click.option("--encryption-secret", metavar="FILE", help="Encrypt what is on disk; made where missing.  [default: no]")
@click.option("--log-format", metavar="FORM", help="auto, console or json.  [default: auto]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [default: info]")
@click.option("--json", "as_json", is_flag=True, help="The same as --log-format json.")
def serve(as_json: bool, **flags: str | None) -> None:
    """Run the daemon until it is told to stop (Ctrl-C or SIGTERM).

    Every option is also an environment variable: --log-level is KVLOOM_LOG_LEVEL. On SIGTERM the daemon finishes the
    requests it has, writes what is only in memory to disk, and ends. On SIGHUP it reads keys and certificates anew; a
    change of the credentials file it notices by itself.
    """
    # Imported here: only a daemon needs a web server, and --help should not wait for one.
    from ..config import ConfigText, LogFormat, resolve_config
    from ..machine import probe_machine
    from ..server import run_daemon

    if as_json:
        flags["log_format"] = LogFormat.JSON.value
    text = ConfigText(**flags).over(ConfigText.from_environ(os.environ))
    config = resolve_config(text, probe_machine(text.directory()))
    asyncio.run(run_daemon(config))
