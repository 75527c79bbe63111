"""Encoding of a batch of chunks: pages to coefficients to symbols on the device, choices on the host, then the streams.

The host learns of each block the tokens' gains, the rows' mean and largest magnitudes (some bytes per row and token),
and makes of them what the codec's own writer makes: classes, active rows, side streams.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidTensor, NonFiniteTensor
from ..container import ContainerWriter
from ..entropy import encode_streams
from ..entropy.model import ROUNDING
from ..layout import Kind
from ..level import LOSSY_LEVELS
from ..lossy import drained_gains, offset_of, predicted_gains, scale_classes, value_norms
from ..profile import Block, Part, Profile, block_range
from ..quantise import ESCAPE_MAX, FINE_MAX, largest_gains
from ..segment import BlockSymbols, Offset
from ..segment_writer import SegmentPlan, plan_segments
from .device import Device, Staging, launch
from .jobs import PAGES, QUANTISE
from .paged import Tensor
from .resident import Angles, resident
from .streams import Stream, code_streams

__all__ = ["Span", "encode_spans"]

_PAGE_THREADS = 256


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a sequence that become one chunk."""

    slot: int
    position: int
    tokens: int
    content_key: bytes


def encode_spans(
    device: Device,
    profile: Profile,
    spans: Sequence[Span],
    tensors: dict[tuple[int, Kind], Tensor],
    block_table: NDArray[np.int32],
    depth: int,
) -> list[bytes]:
    """The containers of ``spans``, coded to the ``depth``-th level."""
    work = _Encoder(device, profile, spans)
    work.gather(tensors, block_table)
    work.analyse()
    plans = work.quantise()
    payloads = work.code(plans, depth)
    containers = []
    for index, span in enumerate(spans):
        writer = ContainerWriter(
            profile.layout,
            tokens=span.tokens,
            first_position=span.position,
            block_layers=profile.block_layers,
            content_key=span.content_key,
            profile_digest=profile.digest,
        )
        for block in range(len(profile.blocks)):
            for level, payload in zip(LOSSY_LEVELS, payloads[index, block], strict=False):
                writer.put(level, block * profile.block_layers, None, payload)
        containers.append(writer.commit())
    return containers


@dataclass(frozen=True, slots=True)
class _Analysed:
    """A block of all chunks: coefficients ``[width, all tokens]`` of each part, and each chunk's offsets."""

    coefficients: list[Any]
    offsets: list[list[Offset]]


class _Encoder:
    """Chunks on their way through the stages; tokens of all chunks stand one after the other."""

    def __init__(self, device: Device, profile: Profile, spans: Sequence[Span]) -> None:
        self._device, self._profile, self._spans = device, profile, spans
        self._bounds = [*accumulate((span.tokens for span in spans), initial=0)]
        self._total = self._bounds[-1]
        self._resident = resident(device, profile)
        self._status = device.xp.zeros(1, np.int32)
        empty = device.xp.empty
        self._channels = [empty((self._total, block.width), np.float32) for block in profile.blocks]
        self._analysed: list[_Analysed] = []
        self._symbols: list[Any] = []  # [chunk x block] int32 [width, tokens]
        self._gains: Any = None
        self._held: list[Any] = []

    def gather(self, tensors: dict[tuple[int, Kind], Tensor], block_table: NDArray[np.int32]) -> None:
        """Queue the reading of the pages, keys turned back; then wait, as no later stage may see what is not finite."""
        address, layout, spans = self._device.address, self._profile.layout, self._spans
        angles = Angles(self._device, [s.position for s in spans], [s.tokens for s in spans])
        table = self._device.upload(np.ascontiguousarray(block_table, dtype=np.int32))
        tokens = np.array([span.tokens for span in spans])
        starts = np.array(self._bounds[:-1], np.uint64)
        pieces: list[NDArray[np.void]] = []
        most = 0
        for index, (block, channels) in enumerate(zip(self._profile.blocks, self._channels, strict=True)):
            at = address(channels) + 4 * block.width * starts
            for layer in self._layers(index):
                for kind in Kind:
                    own, rope = layout.layers[layer].width_of(kind), layout.layers[layer].rope_of(kind)
                    if not own:
                        continue
                    jobs = np.zeros(len(spans), PAGES)
                    tensors[layer, kind].fill(jobs)
                    jobs["channels"], jobs["channel_stride"], jobs["tokens"] = at, block.width, tokens
                    jobs["first_slot"] = [span.slot for span in spans]
                    if rope is not None:
                        jobs["cos"], jobs["sin"] = angles.of(rope, back=True)
                        jobs["pairs"], jobs["first_dim"] = len(rope.inverse_frequencies), rope.first_dim
                        jobs["interleaved"] = rope.interleaved
                    pieces.append(jobs)
                    at = at + np.uint64(4 * own)
                    most = max(most, own)
        every = np.concatenate(pieces)
        every["block_table"], every["status"] = address(table), address(self._status)
        sent = launch(self._device, "kvl_gather", every, -(-most * int(tokens.max()) // _PAGE_THREADS))
        self._held += [angles, table, sent]
        if self._device.download(self._status)[0]:
            raise NonFiniteTensor("pages hold values that are NaN or infinite, the limit of a lossy level is 0")

    def analyse(self) -> None:
        """Centre and transform every block."""
        self._analysed = [
            self._analyse(block, channels) for block, channels in zip(self._profile.blocks, self._channels, strict=True)
        ]

    def _analyse(self, block: Block, channels: Any) -> _Analysed:
        xp = self._device.xp
        coefficients: list[Any] = []
        offsets: list[list[Offset]] = [[] for _ in self._spans]
        for part in block.parts:
            own, arrays = channels[:, part.start : part.stop], self._resident.part(part)
            if part.adaptive:
                columns = xp.empty((part.width, self._total), np.float32)
                for index, (start, stop) in enumerate(zip(self._bounds, self._bounds[1:], strict=False)):
                    offset = self._offset(part, own[start:stop])
                    means = self._device.upload(offset.means)
                    scaled = own[start:stop] / (arrays.scale * np.float32(offset.scale))
                    columns[:, start:stop] = (scaled - means).T
                    offsets[index].append(offset)
                coefficients.append(columns)
                continue
            centred = own - arrays.mean
            for span, start in zip(self._spans, self._bounds, strict=False):
                if span.position == 0:
                    centred[start] = own[start] - arrays.origin_mean
            if part.basis is None:
                coefficients.append(xp.ascontiguousarray((centred / arrays.scale).T))
            else:
                coefficients.append(xp.matmul(self._resident.analysis(part), xp.ascontiguousarray(centred.T)))
        return _Analysed(coefficients, offsets)

    def _offset(self, part: Part, channels: Any) -> Offset:
        mean = channels.mean(axis=0, dtype=np.float64)
        told = self._device.xp.stack([((channels - mean) ** 2).mean(), abs(channels).max().astype(np.float64)])
        variance, largest = self._device.download(told)
        return offset_of(part, self._device.download(mean), float(np.sqrt(variance)), float(largest))

    def quantise(self) -> dict[tuple[int, int], list[SegmentPlan]]:
        """Choose gains and classes, quantise, and plan the segments of each (chunk, block)."""
        told = self._tell()
        gains = np.stack([item.gains for item in told])  # [blocks, all tokens]
        self._gains = self._device.upload(gains)
        address, xp = self._device.address, self._device.xp
        jobs: list[NDArray[np.void]] = []
        peaks: list[Any] = []
        limit = min(FINE_MAX - 1, ESCAPE_MAX << self._profile.refinements)
        for index, span in enumerate(self._spans):
            start = self._bounds[index]
            for number, (block, analysed) in enumerate(zip(self._profile.blocks, self._analysed, strict=True)):
                symbols = xp.empty(block.width * span.tokens, np.int32)
                peak = xp.empty(block.width, np.uint32)
                for part, coefficients in zip(block.parts, analysed.coefficients, strict=True):
                    job = np.zeros(1, QUANTISE)
                    job["coefficients"], job["row_stride"] = address(coefficients) + 4 * start, self._total
                    job["gains"] = address(self._gains) + number * self._total + start
                    job["symbols"] = address(symbols) + 4 * part.start * span.tokens
                    job["peaks"] = address(peak) + 4 * part.start
                    job["width"], job["tokens"] = part.width, span.tokens
                    jobs.append(job)
                self._symbols.append(symbols)
                peaks.append(peak)
        every = np.concatenate(jobs)
        every["factors"], every["status"] = address(self._resident.gain_factors()), address(self._status)
        every["rounding"], every["limit"] = float(ROUNDING), limit
        self._held.append(launch(self._device, "kvl_quantise", every, int(every["width"].max())))
        if self._device.download(self._status)[0]:
            raise InvalidTensor(f"a coefficient is more than {limit} quantiser steps, the limit")
        return self._plan(told, self._device.download(xp.concatenate(peaks)))

    def _plan(self, told: Sequence["_Told"], peaks: NDArray[np.uint32]) -> dict[tuple[int, int], list[SegmentPlan]]:
        plans: dict[tuple[int, int], list[SegmentPlan]] = {}
        at = 0
        for index, (start, stop) in enumerate(zip(self._bounds, self._bounds[1:], strict=False)):
            for number, block in enumerate(self._profile.blocks):
                own = [peaks[at + part.start : at + part.stop] for part in block.parts]
                at += block.width
                offsets = tuple(self._analysed[number].offsets[index])
                item = BlockSymbols((), told[number].gains[start:stop], tuple(told[number].classes[index]), offsets)
                plans[index, number] = plan_segments(block, item, own, self._profile.refinements)
        return plans

    def _tell(self) -> list["_Told"]:
        """Bring to the host, in one copy, what its choices depend on."""
        xp = self._device.xp
        wanted: list[Any] = []
        for number, (block, channels) in enumerate(zip(self._profile.blocks, self._channels, strict=True)):
            if block.gain_weights.size:
                wanted.append(channels @ self._device.upload(block.gain_weights))
            else:
                wanted += value_norms(self._profile.layout, self._layers(number), channels)
            for coefficients in self._analysed[number].coefficients:
                magnitudes = xp.abs(coefficients)
                wanted.append(magnitudes.max(axis=0))
                bounds = zip(self._bounds, self._bounds[1:], strict=False)
                wanted += [magnitudes[:, start:stop].mean(axis=1) for start, stop in bounds]
        flat = self._device.download(xp.concatenate([array.astype(np.float32) for array in wanted]))
        pieces = iter(np.split(flat, np.cumsum([len(array) for array in wanted])[:-1]))
        told = []
        for number, block in enumerate(self._profile.blocks):
            gains = self._gains_of(number, pieces)
            classes: list[list[NDArray[np.uint8]]] = [[] for _ in self._spans]
            for _ in block.parts:
                gains = np.minimum(gains, largest_gains(next(pieces)[None]))
                for own in classes:
                    own.append(scale_classes(next(pieces)[:, None]))
            told.append(_Told(gains, classes))
        return told

    def _layers(self, block: int) -> range:
        return block_range(self._profile.layout, block * self._profile.block_layers, self._profile.block_layers)

    def _gains_of(self, number: int, pieces: Iterator[NDArray[np.float32]]) -> NDArray[np.uint8]:
        """The gains wanted of all tokens, from the first of what was told of the block."""
        block, layout = self._profile.blocks[number], self._profile.layout
        if block.gain_weights.size:
            return predicted_gains(block, next(pieces))
        norms = [next(pieces) for layer in self._layers(number) if layout.layers[layer].value_width]
        bounds = zip(self._bounds, self._bounds[1:], strict=False)
        return np.concatenate([drained_gains([n[start:stop] for n in norms], stop - start) for start, stop in bounds])

    def code(self, plans: dict[tuple[int, int], list[SegmentPlan]], depth: int) -> dict[tuple[int, int], list[bytes]]:
        """Code the main streams on the device, the side streams on the host; payloads of each (chunk, block)."""
        staging, refinements = Staging(), self._profile.refinements
        streams: list[Stream] = []
        for place, (key, levels) in enumerate(plans.items()):
            chunk, number = key
            gains = self._device.address(self._gains) + number * self._total + self._bounds[chunk]
            for level, plan in enumerate(levels[:depth]):
                tables = self._device.address(self._resident.encoder_tables(refinements - level))
                starts = [part.start for part in self._profile.blocks[number].parts]
                symbols = self._device.address(self._symbols[place])
                tokens = self._spans[chunk].tokens
                streams.append(Stream(plan, level, refinements - level, starts, tokens, symbols, gains, tables))
        coded = iter(code_streams(self._device, staging, streams))
        every = [plan for levels in plans.values() for plan in levels[:depth]]
        sides = iter(encode_streams([plan.side for plan in every if plan.side.symbols.size]))
        payloads: dict[tuple[int, int], list[bytes]] = {}
        for key, levels in plans.items():
            payloads[key] = []
            for plan in levels[:depth]:
                escapes, main = next(coded)
                side = next(sides) if plan.side.symbols.size else b""
                payloads[key].append(plan.payload(side, escapes, main))
        return payloads


@dataclass(frozen=True, slots=True)
class _Told:
    """What the host chose for a block: a gain per token, and of each chunk the classes of every part's rows."""

    gains: NDArray[np.uint8]
    classes: list[list[NDArray[np.uint8]]]
