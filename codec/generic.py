"""The generic profile: lossy levels for any model on first contact, with nothing learnt about it.

Each layer's keys and values are coded by themselves, channel by channel: every chunk brings the mean of each channel
and the spread of each tensor, and the quantiser step is a fixed share of that spread. No transform mixes channels, so
it decodes faster than a calibrated profile and costs two to three times the bits. The name in :func:`generic_digest`
stands for all numbers here: whoever changes one changes the name.
"""

from functools import lru_cache

import numpy as np

from .. import limits
from .entropy.model import REFINEMENTS_MAX
from .header import generic_digest
from .layout import Kind, Layout
from .profile import Block, Part, Profile, block_layers_within, block_range

__all__ = ["generic_profile"]

STANDARD_SHARE = {Kind.KEYS: 0.35, Kind.VALUES: 0.45}
"""Step of ``standard`` over the spread of the tensor: with sinks quantised finely, keys are the more sensitive half."""
_FINE_SHARE = 0.5
_BLOCK_CHANNELS = 1152
"""Nothing is mixed, so a block only has to be large enough for its segments' heads not to count."""
_CLASS = 33
"""Where class differences start from: a mean magnitude of 3.6 fine steps, what a channel of its tensor's spread has."""


@lru_cache(maxsize=16)
def generic_profile(layout: Layout) -> Profile:
    """The profile that every kvloom has for ``layout`` without calibration; its digest depends on nothing else."""
    block_layers = block_layers_within(layout, _BLOCK_CHANNELS)
    blocks: list[Block] = []
    for start in range(0, len(layout.layers), block_layers):
        parts: list[Part] = []
        at = 0
        for layer in block_range(layout, start, block_layers):
            for kind in Kind:
                for width in _widths(layout.layers[layer].width_of(kind)):
                    # Views of one number each: a layout as wide as the limits allow costs nothing.
                    zeros = np.broadcast_to(np.float32(0), width)
                    scale = np.broadcast_to(np.float32(STANDARD_SHARE[kind] * _FINE_SHARE), width)
                    classes = np.broadcast_to(np.uint8(_CLASS), width)
                    parts.append(Part(at, zeros, zeros, scale, None, classes, adaptive=True))
                    at += width
        blocks.append(Block(tuple(parts), np.zeros(0, np.float32), 0.0))
    profile = Profile(layout, block_layers, REFINEMENTS_MAX, tuple(blocks))
    # Both ends make this profile themselves, so its name is that of what it is made from, not of a file's bytes.
    profile.__dict__["digest"] = generic_digest(layout)
    return profile


def _widths(channels: int) -> list[int]:
    """``channels`` in as few parts as the limit allows."""
    most = limits.PART_CHANNELS_MAX
    return [min(most, channels - start) for start in range(0, channels, most)]
