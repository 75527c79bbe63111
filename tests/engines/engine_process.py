"""A vLLM engine in a process of its own, driven by lines of JSON: ``engine_process.py OPTIONS`` runs in vLLM's venv.

Every line on standard input has ``prompts`` ``{"tokens": [...], "max_tokens": n, "salt": ..., "transfer": ...}``
(``transfer`` being a request's kv_transfer_params, ``lora`` an adapter's ``name``, ``number`` and ``folder``, ``sound``
the seed of one; with ``logprobs`` -1 the first token's are told, of the whole vocabulary), which are computed
together, and ``drain_seconds``, for which storing what is saved of them may take. Answered for each, in the order in
which they end, with a line with its output; then with one with what the engine has counted.
"""

import gc
import json
import os
import sys
import time
from typing import Any, TextIO

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE=os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
    VLLM_ENABLE_V1_MULTIPROCESSING=os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    HF_HUB_OFFLINE="1",
    # Threads that spin until the others are there make a busy machine many times slower than one thread does.
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
)


def answer(llm: Any, question: dict[str, Any], lines: TextIO, run: int) -> None:
    """Compute what is asked and say what came."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    engine = llm.llm_engine
    began: dict[str, float] = {}
    for index, item in enumerate(question["prompts"]):
        parameters = SamplingParams(
            max_tokens=item["max_tokens"],
            temperature=0.0,
            logprobs=item.get("logprobs", 2),
            ignore_eos=True,
            detokenize=False,
            extra_args={"kv_transfer_params": item["transfer"]} if item.get("transfer") else None,
        )
        prompt = TokensPrompt(prompt_token_ids=item["tokens"])
        if item.get("salt"):
            prompt["cache_salt"] = item["salt"]
        if item.get("sound") is not None:
            prompt["multi_modal_data"] = {"audio": noise(item["sound"])}
        began[f"{run}-{index}"] = time.perf_counter()
        lora = item.get("lora")
        adapter = None if lora is None else LoRARequest(lora["name"], lora["number"], lora["folder"])
        engine.add_request(f"{run}-{index}", prompt, parameters, lora_request=adapter)
    first: dict[str, float] = {}
    cached: dict[str, int] = {}
    longest_step = 0.0
    while engine.has_unfinished_requests():
        step = time.perf_counter()
        outputs = engine.step()
        now = time.perf_counter()
        longest_step = max(longest_step, now - step)
        for output in outputs:
            made = output.outputs[0]
            if made.token_ids:
                first.setdefault(output.request_id, now - began[output.request_id])
            cached[output.request_id] = max(cached.get(output.request_id, 0), output.num_cached_tokens or 0)
            if output.finished:
                best = [sorted(entry.logprob for entry in place.values())[-2:] for place in made.logprobs]
                whole = question["prompts"][int(output.request_id.split("-")[1])].get("logprobs", 2) < 0
                line = {
                    "index": int(output.request_id.split("-")[1]),
                    "tokens": list(made.token_ids),
                    "gaps": [high - low for low, high in best],
                    "cached": cached[output.request_id],
                    "ttft_s": first[output.request_id],
                    "first": [made.logprobs[0][token].logprob for token in sorted(made.logprobs[0])] if whole else [],
                }
                print(json.dumps(line), file=lines, flush=True)
    line = {"counted": counted(llm, question["drain_seconds"]), "longest_step_s": longest_step}
    print(json.dumps(line), file=lines, flush=True)


def noise(seed: int) -> Any:
    """1.6 s of sound, and its samples per second."""
    import numpy as np

    return np.random.default_rng(seed).standard_normal(25_600).astype(np.float32), 16_000


def counted(llm: Any, drain_seconds: float) -> dict[str, float]:
    """Preemptions, and what the connector loaded, saved and asked since the start, after waiting for what it saves.

    Of workers in processes of their own only what vLLM's metrics say is known here.
    """
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    found = {item.name: getattr(item, "value", 0) for item in llm.get_metrics()}
    counts = {"preemptions": found.get("vllm:num_preemptions", 0)}
    ours = "vllm:kvloom_"
    counts |= {name.removeprefix(ours): value for name, value in found.items() if name.startswith(ours)}
    if not has_kv_transfer_group() or not hasattr(get_kv_transfer_group(), "totals"):
        return counts
    drained = get_kv_transfer_group().drain_saves(drain_seconds)
    here = get_kv_transfer_group().totals().as_dict()
    return {
        **counts,
        **{name: value for name, value in here.items() if value or name not in counts},
        "drained": drained,
    }


def main() -> None:
    """Start the engine, say so, and answer until the input ends."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    # What is imported stays: collecting it as garbage, time and again, would be a good part of an engine's start.
    gc.disable()
    from vllm import LLM
    from vllm.config import KVTransferConfig

    gc.freeze()
    gc.enable()

    options = json.loads(sys.argv[1])
    transfer = options.pop("transfer", None)
    began = time.perf_counter()
    llm = LLM(
        dtype=options.pop("dtype", "float32"),
        enforce_eager=True,
        disable_log_stats=False,
        kv_transfer_config=None if transfer is None else KVTransferConfig(**transfer),
        **options,
    )
    print(json.dumps({"started_s": time.perf_counter() - began}), file=lines, flush=True)
    for run, line in enumerate(sys.stdin):
        answer(llm, json.loads(line), lines, run)
    llm.llm_engine.engine_core.shutdown()
    print(json.dumps({"ended": True}), file=lines, flush=True)


if __name__ == "__main__":
    main()
