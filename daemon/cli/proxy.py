"""``kvloom proxy``: documents by name in front of a vLLM that uses kvloom."""

import asyncio
import time
from contextlib import closing
from pathlib import Path

import click

from .chat_options import announcer, chat_options, library_path, server_key
from .console import examples

__all__ = ["proxy"]


@click.command(
    epilog=examples(
        "kvloom proxy http://127.0.0.1:8000",
        "kvloom proxy http://engine:8000 --upstream-key-file vllm.key --port 0",
    )
)
@click.argument("upstream")
@click.option(
    "--upstream-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The key that the engine takes, on its first line.",
)
@chat_options
def proxy(
    upstream: str, upstream_key_file: Path | None, port: int, key_file: Path | None, library: Path | None, as_json: bool
) -> None:
    """Serve the /v1 interface of the engine at UPSTREAM to this machine, until
    told to stop. Documents are put once, PUT /v1/documents/NAME {"text": ...},
    and named in chat requests, "document_ids": ["NAME"]; everything else passes
    untouched, streams too.
    """
    from ...clients.rag.library import Library
    from ..chat.guard import ChatGuard
    from ..chat.proxy_api import ProxyApi
    from ..chat.server import read_key, run_chat

    upstream_key = None if upstream_key_file is None else read_key(upstream_key_file)
    with closing(Library(library_path(library), clock=time.time)) as known:
        guard = ChatGuard(server_key(key_file))
        api = ProxyApi(known, guard, upstream=upstream, upstream_key=upstream_key)
        asyncio.run(run_chat(api.application(), port, announcer(key_file, as_json=as_json)))
