"""The GPU tier: a paged pool of decoded chunks, in the process that owns the GPU; the same class runs on host memory.

It is not a :class:`~..tier.Tier`: tiers keep containers byte for byte, and what stands here is tensors (docs/adr/0015).
Nothing here is loaded by the rest of the package, and torch and CuPy only by the arrays that are of them.
"""
