"""kvloom keeps the KV caches of language models outside the engine, so that no text is prefilled twice.

Importing this package loads nothing heavy: no torch, no transformers, no cupy. Pick the room you need:

* :mod:`kvloom.codec`   KV tensors to bytes and back (pure, NumPy)
* :mod:`kvloom.kvstore` chunk identity and the storage tiers
* :mod:`kvloom.blend`   reuse of chunks that are not a prefix (needs the ``[torch]`` extra)
* :mod:`kvloom.daemon`  the service and the ``kvloom`` command
* :mod:`kvloom.clients` Python clients and the RAG SDK
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
