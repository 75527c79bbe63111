"""Measure what prefill costs on this machine, and fit ``a·n + b·n·(s + n/2) + c`` to it.

    python bench/prefill.py --json docs/measurements/prefill_smollm2.json

Each of several lengths ``n`` is prefilled behind each of several contexts ``s``, in turn, on one thread, and the least
time taken: seconds of the processor, so that it does not matter what else the machine does. The fit is least squares
on relative errors. It is what ``daemon/planner/simulate/figures.py`` has of this model.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache

from kvloom.clients.transformers import load_model

LENGTHS = (64, 256)
CONTEXTS = (0, 512, 1024, 1536)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model).model
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(100, model.config.vocab_size, (1, max(CONTEXTS) + max(LENGTHS)), generator=source)
    times: dict[tuple[int, int], list[float]] = {(s, n): [] for s in CONTEXTS for n in LENGTHS}
    with torch.inference_mode():
        for _ in range(arguments.rounds):
            cache = DynamicCache()
            for context in CONTEXTS:
                have = cache.get_seq_length()
                if context > have:
                    model(ids[:, have:context], past_key_values=cache, logits_to_keep=1)
                for length in LENGTHS:
                    began = time.process_time()
                    model(ids[:, context : context + length], past_key_values=cache, logits_to_keep=1)
                    times[context, length].append(time.process_time() - began)
                    cache.crop(-length)
    rows = [{"context": s, "tokens": n, "seconds": min(found)} for (s, n), found in times.items()]
    seconds = np.array([row["seconds"] for row in rows])
    design = np.array([(row["tokens"], row["tokens"] * (row["context"] + row["tokens"] / 2), 1.0) for row in rows])
    fitted, *_ = np.linalg.lstsq(design / seconds[:, None], np.ones(len(rows)), rcond=None)
    errors = np.abs(design @ fitted / seconds - 1)
    report = {
        "model": arguments.model,
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "token_seconds": float(fitted[0]),
        "token_context_seconds": float(fitted[1]),
        "call_seconds": float(fitted[2]),
        "relative_error_mean": float(errors.mean()),
        "relative_error_max": float(errors.max()),
        "rows": rows,
    }
    for row in rows:
        print(f"{row['tokens']:5d} tokens behind {row['context']:5d}: {row['seconds']:.3f} s")
    print(
        f"a {fitted[0]:.3e}  b {fitted[1]:.3e}  c {fitted[2]:.3e}  off {errors.mean():.1%}, at most {errors.max():.1%}"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
