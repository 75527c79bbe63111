"""Models of Hugging Face Transformers: load them, say what their KV looks like, run them on our caches.

Nothing here knows an architecture: what a model's KV is, is found out by running it (:mod:`.probing`).
"""

from .calibration_text import cut_sequences, opening_tokens
from .fitting import fitted
from .identity import model_identity
from .kvloom_cache import CacheReport, KvloomCache, ModelKv
from .loading import LoadedModel, load_gemma3, load_gguf_model, load_model, load_smollm2
from .probing import model_layout
from .running import extract, greedy, next_logits, prefill
from .sensitivity import SequencePlan, calibration_samples

__all__ = [
    "CacheReport",
    "KvloomCache",
    "LoadedModel",
    "ModelKv",
    "SequencePlan",
    "calibration_samples",
    "cut_sequences",
    "extract",
    "fitted",
    "greedy",
    "load_gemma3",
    "load_gguf_model",
    "load_model",
    "load_smollm2",
    "model_identity",
    "model_layout",
    "next_logits",
    "opening_tokens",
    "prefill",
]
