"""``kvloom serve-model``: OpenAI's chat completions over a model of ours, with documents blended."""

import asyncio
import time
from contextlib import closing
from pathlib import Path

import click

from ...errors import MissingDependency
from .chat_options import announcer, chat_options, library_path, server_key
from .console import address_option, examples

__all__ = ["serve_model"]


@click.command(
    name="serve-model",
    epilog=examples(
        "kvloom serve-model smollm2",
        "kvloom serve-model ./Llama-3.2-1B --port 0 --key-file chat.key",
    ),
)
@click.argument("model")
@click.option("--name", help="What the model is called in requests.  [default: MODEL]")
@chat_options
@address_option
def serve_model(
    model: str,
    name: str | None,
    port: int,
    key_file: Path | None,
    library: Path | None,
    as_json: bool,
    address: str | None,
) -> None:
    """Serve MODEL (smollm2, a Transformers folder or a GGUF file) to this machine,
    as OpenAI's chat API does, until it is told to stop.

    Documents are put once, PUT /v1/documents/NAME {"text": ...}, and named in
    chat requests, "document_ids": ["NAME"]: their KV is loaded from the daemon
    and blended, in any order. One user message a request; "stream" works.
    """
    try:
        from ...clients.rag.pipeline import RagPipeline
        from ...clients.transformers import load_model
    except ModuleNotFoundError as error:
        raise MissingDependency(f"a model needs {error.name}: pip install 'kvloom[rag]'") from error
    from ...clients import KvloomClient
    from ...clients.rag.library import Library
    from ...clients.rag.service import RagService
    from ..chat.guard import ChatGuard
    from ..chat.model_api import ModelApi
    from ..chat.server import run_chat

    loaded = load_model(model)
    guard = ChatGuard(server_key(key_file))
    with (
        KvloomClient(address) as client,
        closing(Library(library_path(library), clock=time.time)) as known,
        closing(RagPipeline(loaded.model, loaded.tokenizer, client)) as pipeline,
        RagService(pipeline, client, library=known) as service,
    ):
        api = ModelApi(service, known, guard, name=name or model)
        asyncio.run(run_chat(api.application(), port, announcer(key_file, as_json=as_json)))
