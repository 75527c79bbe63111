"""Measure disaggregated prefill: one engine computes a prompt, another answers it, over one daemon.

    make build/vllm/.made
    build/vllm/bin/python bench/disaggregated.py --json disaggregated.json

vLLM's CPU build on SmolLM2 in float32: a prefill engine, a decode engine and a daemon, in processes of their own, one
thread for each engine. Times are seconds to the decode engine's first token from when the prompt is known, medians over
prompts, the ways in turn for each prompt: ``alone``: the decode engine computes it. ``in_turn``: it is asked once the
prefill engine has answered and all is stored. ``streamed``: both are asked at once, and layers come as they are
computed. ``prefill``: when the prefill engine has its own first token meanwhile, and ``after_prefill``: how much later
the decode engine has its. Ends in about five minutes on two cores.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import (
    ANSWER_TOKENS,
    WARM_UP_TOKENS,
    Process,
    daemon,
    model_folder,
    require_vllm,
    running,
    texts,
    vllm_version,
    write,
)

AWAIT = {"kvloom_await": True}
AWAIT_SECONDS_MAX = 300


@dataclass(frozen=True, slots=True)
class Row:
    """One length of context and one size of steps."""

    version: str
    context_tokens: int
    step_tokens: int
    layers_per_part: int
    alone_s: float
    in_turn_s: float
    streamed_s: float
    prefill_s: float
    after_prefill_s: float
    identical_outputs: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Times:
    """One prompt's."""

    alone_s: float
    in_turn_s: float
    streamed_s: float
    prefill_s: float
    same: bool


def transfer(role: str, layers_per_part: int) -> dict[str, Any]:
    """What vLLM is told."""
    settings = {
        "save_answers": False,
        "plan": False,
        "layers_per_part": layers_per_part,
        "load_seconds_max": AWAIT_SECONDS_MAX,
        "await_seconds_max": AWAIT_SECONDS_MAX,
        "load_by_layer": role == "kv_consumer",
    }
    return {
        "kv_connector": "KvloomConnector",
        "kv_connector_module_path": "kvloom.clients.vllm",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": settings,
    }


def question(tokens: list[int], salt: str, *, max_tokens: int = ANSWER_TOKENS, awaits: bool = False) -> dict[str, Any]:
    """One prompt as the engine's process takes it."""
    return {"tokens": tokens, "max_tokens": max_tokens, "salt": salt, "transfer": AWAIT if awaits else None}


def measure(prefill: Process, decode: Process, tokens: list[int], number: int) -> Times:
    """One prompt in all ways."""
    alone, _ = decode.ask_all([question(tokens, f"alone {number}")])
    began = time.perf_counter()
    prefill.ask_all([question(tokens, f"in turn {number}", max_tokens=1)])
    stored = time.perf_counter() - began
    second, _ = decode.ask_all([question(tokens, f"in turn {number}", awaits=True)])
    prefill.send([question(tokens, f"streamed {number}", max_tokens=1)])
    decode.send([question(tokens, f"streamed {number}", awaits=True)])
    computed, _ = prefill.receive()
    streamed, _ = decode.receive()
    same = alone["tokens"] == second["tokens"] == streamed["tokens"]
    return Times(alone["ttft_s"], stored + second["ttft_s"], streamed["ttft_s"], computed["ttft_s"], same)


def measured(arguments: argparse.Namespace) -> Row:
    """Start both engines over one daemon, and measure all prompts."""
    model = arguments.model or model_folder()
    prompts = texts(model, arguments.context, arguments.prompts)
    more = {"max_num_batched_tokens": arguments.step, "max_num_seqs": 8}
    room = arguments.context + WARM_UP_TOKENS
    with ExitStack() as stack:
        environ = stack.enter_context(daemon(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        prefill, decode = (
            stack.enter_context(running(model, transfer(role, arguments.layers_per_part), room, environ, more))
            for role in ("kv_producer", "kv_consumer")
        )
        for engine in (prefill, decode):
            engine.warm_up()
        found = []
        for number, tokens in enumerate(prompts):
            found.append(measure(prefill, decode, tokens, number))
            print(f"prompt {number + 1} of {len(prompts)}: {found[-1]}", flush=True)
    return Row(
        vllm_version(),
        arguments.context,
        arguments.step,
        arguments.layers_per_part,
        statistics.median(item.alone_s for item in found),
        statistics.median(item.in_turn_s for item in found),
        statistics.median(item.streamed_s for item in found),
        statistics.median(item.prefill_s for item in found),
        statistics.median(item.streamed_s - item.prefill_s for item in found),
        sum(item.same for item in found),
        len(found),
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="About five minutes on two cores.")
    parser.add_argument("--context", type=int, default=1300)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--step", type=int, default=256, help="tokens that an engine computes at a time")
    parser.add_argument("--layers-per-part", type=int, default=6)
    parser.add_argument("--model", type=Path, help="SmolLM2 in Transformers' format; made where none is given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    require_vllm()
    os.environ["OMP_NUM_THREADS"] = "1"
    load = os.getloadavg()[0]
    row = measured(arguments)
    print("context  step  layers  alone s  in turn s  streamed s  prefill s  after prefill s  same")
    print(
        f"{row.context_tokens:7d} {row.step_tokens:5d} {row.layers_per_part:7d} {row.alone_s:8.2f} "
        f"{row.in_turn_s:10.2f} {row.streamed_s:11.2f} {row.prefill_s:10.2f} {row.after_prefill_s:16.3f}  "
        f"{row.identical_outputs}/{row.prompts}"
    )
    if arguments.json:
        write(arguments.json, {"rows": [row]}, load, 1)


if __name__ == "__main__":
    main()
