"""The engine of ``bench/links.py``: SmolLM2 with the RAG pipeline, told what to do by JSON lines on standard input."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch

from kvloom import codec
from kvloom.blend.cache import KvCache
from kvloom.clients import KvloomClient
from kvloom.clients.access import Trust
from kvloom.clients.rag import Document, RagPipeline
from kvloom.clients.rag.loading import PlanSettings
from kvloom.clients.rag.pipeline import Answer, Strategy
from kvloom.clients.transformers import load_smollm2, prefill
from kvloom.codec.level import EXACT, STANDARD
from kvloom.codec.profiles import parse_profile
from kvloom.kvstore.key import chunk_refs

CHUNK_TOKENS, CHUNKS, DOCUMENT_TOKENS = 128, 4, 260
CALIBRATION_CHARACTERS = 6000
"""A little: the sizes of what is loaded are what counts here."""
SETTINGS = {
    "always-recompute": PlanSettings(enabled=False),
    "always-load-raw": PlanSettings(enabled=False, prefix_level=EXACT),
    "always-load-level": PlanSettings(enabled=False, prefix_level=STANDARD),
    "kvloom": PlanSettings(prefix_level=STANDARD, engine="links-bench"),
}
PREFILLS = ((64, 0), (128, 0), (512, 0), (128, 384), (64, 512))
"""Tokens, and tokens before them: all of a prompt, a chunk, and what is behind the chunks."""


class Engine:
    """One model and a pipeline per strategy, all with the same daemon."""

    def __init__(self, options: dict) -> None:
        torch.set_num_threads(1)
        loaded = load_smollm2(Path(options["models"]))
        self.model, self.options = loaded.model, options
        self.received = Path(options["received_file"])
        client = self.client("direct")
        self.pipelines = {
            name: RagPipeline(loaded.model, loaded.tokenizer, client, chunk_tokens=CHUNK_TOKENS, planning=settings)
            for name, settings in SETTINGS.items()
        }
        self.address = "direct"
        texts = sorted(topics.values(), key=len, reverse=True)
        tokenise = self.pipelines["kvloom"].template.tokenise
        self.sets = []
        for number in range(options["sets"]):
            cut = [self._cut(texts[8 + 2 * number + part], tokenise) for part in range(2)]
            self.sets.append([Document(text, f"Section {number}.{part}") for part, text in enumerate(cut)])

    def _cut(self, text: str, tokenise: Callable[[str], Any]) -> str:
        words = text.split(" ")
        low, high = 1, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if len(tokenise(" ".join(words[:middle]))) <= DOCUMENT_TOKENS else (low, middle - 1)
            )
        return " ".join(words[:low])

    def reach(self, address: str) -> None:
        """Talk to the daemon straight, or through the proxy."""
        if address != self.address:
            for pipeline in self.pipelines.values():
                pipeline.use_client(self.client(address))
            self.address = address

    def forget_links(self, name: str) -> None:
        """Ask the planner as another engine from now on, which knows how the model computes and no link."""
        self.reach("direct")
        known = self.pipelines["kvloom"]
        settings = replace(SETTINGS["kvloom"], engine=f"links-bench-{name}")
        fresh = RagPipeline(
            self.model, known.tokenizer, self.client(self.address), chunk_tokens=CHUNK_TOKENS, planning=settings
        )
        fresh.profile = known.profile
        fresh.use_client(self.client(self.address))
        known.close()
        self.pipelines["kvloom"] = fresh
        self.ask("kvloom", 0, "What is this about?", self.address, strategy=Strategy.RECOMPUTE)

    def client(self, address: str) -> KvloomClient:
        """A client of its own."""
        given = self.options
        return KvloomClient(
            given[address], api_key=given["key"], trust=Trust(ca=Path(given["ca"])), local=False, data_dir=Path("/none")
        )

    def ask(self, name: str, number: int, question: str, address: str, **more: Any) -> Answer:
        """One answer of one token."""
        self.reach(address)
        strategy = Strategy.RECOMPUTE if name == "always-recompute" else Strategy.PREFIX
        strategy = more.pop("strategy", strategy)
        return self.pipelines[name].generate(question, self.sets[number], strategy=strategy, tokens_max=1, **more)

    def prepare(self) -> dict:
        """Store every set's chunks at both levels; what a simulation has to know of this model and codec."""
        kvloom = self.pipelines["kvloom"]
        client = self.client("direct")
        kept = None if self.options["profile"] is None else Path(self.options["profile"])
        if kept is not None and kept.is_file():
            kvloom.profile = parse_profile(kept.read_bytes())
            client.put_profile(kvloom.profile.data)
        else:
            profile = kvloom.calibrate([max(topics.values(), key=len)[:CALIBRATION_CHARACTERS]])
            if kept is not None:
                kept.write_bytes(profile.data)
        for pipeline in self.pipelines.values():  # the profile is not what is measured: all have it
            pipeline.profile = kvloom.profile
            pipeline.use_client(client)
        answers = [
            self.ask("kvloom", number, "What is this about?", "direct", strategy=Strategy.RECOMPUTE, remember=True)
            for number in range(len(self.sets))
        ]
        ids = kvloom.template.prompt("What is this about?", self.sets[0]).token_ids
        refs = chunk_refs(kvloom.identity, ids, chunk_tokens=CHUNK_TOKENS)[:CHUNKS]
        levels, values = {}, CHUNK_TOKENS * kvloom.layout.values_per_token
        for level in (STANDARD, EXACT):
            containers = [client.get(ref.key, level=level).value for ref in refs]
            seconds = []
            for container in containers:
                began = time.perf_counter()
                codec.decode(container.data, profile=kvloom.profile, level=level)
                seconds.append(time.perf_counter() - began)
            levels[level.name] = {
                "bits_per_value": 8 * statistics.mean(len(item.data) for item in containers) / values,
                "decode_values_per_s": values / statistics.median(seconds),
            }
        asked = []
        for _ in range(9):
            began = time.perf_counter()
            client.exists([refs[0].key])
            asked.append(time.perf_counter() - began)
        return {
            "levels": levels,
            "values_per_token": kvloom.layout.values_per_token,
            "prompt_tokens": [answer.prompt_tokens for answer in answers],
            "latency_s": statistics.median(asked),
        }

    def prefills(self) -> list[list[float]]:
        """Tokens, tokens before them, seconds."""
        ids = np.arange(1000, 2024)
        found = []
        for tokens, start in PREFILLS:
            cache = KvCache(self.pipelines["kvloom"].layout, start + tokens)
            if start:
                prefill(self.model, ids[:start], cache=cache)
            began = time.perf_counter()
            prefill(self.model, ids[start : start + tokens], cache=cache)
            found.append([tokens, start, time.perf_counter() - began])
        return found

    def serve(self) -> None:
        """Until standard input ends."""
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            told = json.loads(line)
            if told["do"] == "prepare":
                reply = self.prepare()
            elif told["do"] == "prefills":
                reply = self.prefills()
            elif told["do"] == "forget":
                self.forget_links(told["name"])
                reply = None
            else:
                before, began = int(self.received.read_text()), time.time()
                answer = self.ask(told["strategy"], told["set"], told["question"], told["address"])
                reply = {
                    "began": began,
                    "ttft_s": answer.ttft_seconds,
                    "bytes": int(self.received.read_text()) - before,
                    "prompt_tokens": answer.prompt_tokens,
                    "loaded": 0 if answer.load is None else len(answer.load.loaded),
                    "expected_s": None if answer.plan is None else answer.plan.expected_seconds,
                    "token": answer.token_ids[0],
                }
            print(json.dumps(reply), flush=True)
        for pipeline in self.pipelines.values():
            pipeline.close()


if __name__ == "__main__":
    Engine(json.loads(sys.argv[1])).serve()
