"""``generate`` over a real daemon: what one process has computed, another loads, and nothing changes but the time."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_rag import tiny_model
from transformers import LlamaForCausalLM

from kvloom import limits
from kvloom.clients.transformers import KvloomCache, ModelKv
from kvloom.codec import STANDARD
from kvloom.errors import InvalidRequest, LayoutMismatch

NEW_TOKENS = 12
CHUNK = 64

feature = functools.partial(
    pytest.mark.feature, "Transformers", package="transformers", how="generate on a CPU, real daemons"
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def known(model):
    return ModelKv.of(model)


@pytest.fixture
def prompt(rng):
    return torch.from_numpy(rng.integers(0, 256, (1, 300)))


def generate(model, prompt, cache=None, tokens=NEW_TOKENS):
    return model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache,
        max_new_tokens=tokens,
        do_sample=False,
    )


def make(daemon, model, prompt, known, **options):
    return KvloomCache(daemon.client(), model, prompt, known=known, chunk_tokens=CHUNK, **options)


@feature(
    "`KvloomCache` in `generate`: the longest stored prefix is loaded, new chunks are stored, outputs are the same"
)
def test_a_prompt_is_stored_and_its_longest_prefix_loaded(daemon, model, known, prompt):
    plain = generate(model, prompt)
    with make(daemon, model, prompt, known) as first:
        assert torch.equal(generate(model, prompt, first), plain)
    report = first.report
    assert (report.loaded_tokens, report.stored_chunks, report.stored_tokens) == (0, 5, 300)
    assert not report.failure
    with make(daemon, model, prompt, known) as again:
        assert torch.equal(generate(model, prompt, again), plain)
    assert again.report.loaded_tokens == 299, "all but the token that is to be computed, the unfinished chunk included"
    assert again.report.stored_chunks == 0
    for layer in range(3):
        ours, theirs = again.layer_arrays(layer), first.layer_arrays(layer)
        assert np.array_equal(ours.keys[:, :299], theirs.keys[:, :299])
        assert np.array_equal(ours.values[:, :299], theirs.values[:, :299])

    longer = torch.cat([prompt, prompt[:, :50]], dim=1)
    with make(daemon, model, longer, known) as other:
        assert torch.equal(generate(model, longer, other), generate(model, longer))
    assert other.report.loaded_tokens == 300
    parting = torch.cat([prompt[:, :200], 255 - prompt[:, 200:]], dim=1)
    assert make(daemon, model, parting, known).report.loaded_tokens == 192


@feature("`KvloomCache`: a next turn loads the answer's KV, too")
def test_a_next_turn_goes_on_from_the_answer(daemon, model, known, prompt):
    with make(daemon, model, prompt, known) as cache:
        output = generate(model, prompt, cache, tokens=40)
        assert cache.save(output).stored_tokens == (256 + 44) + (64 + 19)
    turn = torch.cat([output, prompt[:, :30]], dim=1)
    with make(daemon, model, turn, known) as cache:
        assert cache.report.loaded_tokens == 339, "all that had KV: the last token of the answer has none"
        assert torch.equal(generate(model, turn, cache), generate(model, turn))
        with pytest.raises(InvalidRequest, match="do not begin with the prompt"):
            cache.save(prompt[:, 1:])


def test_without_a_with_block_all_is_stored_by_the_end(daemon, model, known, prompt):
    cache = make(daemon, model, prompt, known)
    generate(model, prompt, cache)
    assert cache.finish().stored_chunks == 5
    assert make(daemon, model, prompt, known).report.loaded_tokens == 299
    silent = make(daemon, model, prompt[:, :150].flip(1), known, store=False)
    generate(model, prompt[:, :150].flip(1), silent)
    assert silent.finish().stored_chunks == 0


@feature("`KvloomCache` at a lossy level")
def test_a_lossy_level_is_smaller_and_near(daemon, model, known, prompt):
    with make(daemon, model, prompt, known, level=STANDARD) as first:
        generate(model, prompt, first)
    assert first.report.stored_bytes < 300 * known.layout.bytes_per_token / 3
    with make(daemon, model, prompt, known, level=STANDARD) as again, torch.inference_mode():
        assert again.report.loaded_tokens == 299
        near = model(input_ids=prompt[:, 299:], past_key_values=again).logits[0, -1]
        exact = model(input_ids=prompt).logits[0, -1]
    assert np.corrcoef(near.numpy(), exact.numpy())[0, 1] > 0.98


def test_other_weights_have_another_cache(daemon, model, known, prompt):
    with make(daemon, model, prompt, known) as cache:
        generate(model, prompt, cache)
    other = LlamaForCausalLM(model.config).eval()
    assert KvloomCache(daemon.client(), other, prompt, chunk_tokens=CHUNK).report.loaded_tokens == 0


def test_what_the_cache_is_not_for(daemon, model, known, prompt):
    with pytest.raises(InvalidRequest, match=r"shape \(2, 150\)"):
        make(daemon, model, prompt.reshape(2, 150), known)
    with pytest.raises(InvalidRequest, match="chunk_tokens is 0"):
        KvloomCache(daemon.client(), model, prompt, known=known, chunk_tokens=0)
    with pytest.raises(LayoutMismatch, match="batch 3"):
        model.generate(prompt, past_key_values=make(daemon, model, prompt, known), num_beams=3, max_new_tokens=2)


def test_a_damaged_chunk_ends_the_prefix(daemon, model, known, prompt):
    with make(daemon, model, prompt, known) as cache:
        generate(model, prompt, cache)
        key = cache._chunks.full(prompt[0].numpy())[2].keys[0]
    assert daemon.client().delete(key)
    with make(daemon, model, prompt, known) as cache:
        assert cache.report.loaded_tokens == 2 * CHUNK
        assert torch.equal(generate(model, prompt, cache), generate(model, prompt))
    assert cache.report.stored_chunks == 1, "only what was missing"


@feature("`KvloomCache`: a dead or frozen daemon costs a bounded wait and no output")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "frozen"])
def test_without_a_daemon_everything_is_computed_in_bounded_time(
    start_daemon, model, known, prompt, ending, monkeypatch
):
    monkeypatch.setenv("KVLOOM_LOOKUP_SECONDS", "0.5")
    daemon = start_daemon()
    with make(daemon, model, prompt, known) as cache:
        generate(model, prompt, cache)
    client = daemon.client()
    daemon.signal(ending)
    try:
        cache = KvloomCache(client, model, prompt, known=known, chunk_tokens=CHUNK)
        assert torch.equal(generate(model, prompt, cache), generate(model, prompt))
        assert cache.finish(5).loaded_tokens == 0
        assert cache.report.stored_chunks == 0
        assert cache.report.failure
    finally:
        daemon.signal(signal.SIGCONT)


PROGRAM = """
import json, sys
from kvloom.clients import KvloomClient
from kvloom.clients.transformers import KvloomCache, ModelKv, load_smollm2

given = json.load(sys.stdin)
loaded = load_smollm2()
known = ModelKv.of(loaded.model, folder=loaded.folder)
for text in given["prompts"]:
    inputs = loaded.tokenizer(text, return_tensors="pt")
    client = KvloomClient(given["address"], data_dir=given["data_dir"], local=given["local"])
    cache = KvloomCache(client, loaded.model, inputs["input_ids"], known=known)
    output = loaded.model.generate(**inputs, past_key_values=cache, max_new_tokens=16, do_sample=False)
    print(json.dumps([cache.report.loaded_tokens, inputs["input_ids"].shape[1], output[0].tolist()]), flush=True)
"""


@feature("`KvloomCache` with SmolLM2: another process over a restarted daemon gives the same greedy output")
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_says_the_same_in_another_process_and_after_a_restart(start_daemon, smollm2):
    daemon = start_daemon()
    context = Path(limits.__file__).read_text()[:1500]
    prompts = [f"{context}\n\nQuestion {n}: {what}\nAnswer:" for n, what in enumerate(("What is it?", "Whose?"))]

    def run():
        given = {"address": str(daemon.endpoint), "data_dir": None, "local": False, "prompts": prompts}
        environ = {"KVLOOM_API_KEY": daemon.key["Authorization"].removeprefix("Bearer ")}
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **environ},
            timeout=400,
        )
        return [json.loads(line) for line in found.stdout.splitlines()]

    first = run()
    assert first[0][0] == 0
    assert daemon.stop() == 0
    daemon.start()
    second = run()
    for text, (loaded, length, output), cold in zip(prompts, second, first, strict=True):
        assert loaded == length - 1, "all but the token that is to be computed"
        inputs = smollm2.tokenizer(text, return_tensors="pt")
        plain = smollm2.model.generate(**inputs, max_new_tokens=16, do_sample=False)
        assert output == cold[2] == plain[0].tolist()
