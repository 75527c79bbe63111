"""The lossy levels on a GPU: kernels in CUDA, and what prepares their work. :mod:`kvloom.codec.gpu` is the way in.

Nothing here is loaded by the rest of the package, and CuPy only where :class:`.device.CupyDevice` is made.
"""
