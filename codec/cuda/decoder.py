"""Decoding of a batch of chunks: one launch per level, one for the synthesis, one for the pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidData
from ..container import Container
from ..layout import Kind, Layout
from ..level import LOSSY_LEVELS
from ..profile import Block, Part, Profile, block_range
from ..segment import tables_of_classes
from ..segment_reader import BlockStreams, read_streams
from .device import Device, Staging, launch
from .jobs import DECODE, PAGES, ROW, STATUS, SYNTHESIS
from .paged import Tensor
from .resident import Angles, resident

__all__ = ["Batch", "Chunk"]

_TILE, _PAGE_THREADS = 64, 256


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk to decode: ``slot`` of its sequence that its first token goes to, and that token's ``position``."""

    container: Container
    slot: int
    position: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One block of layers of one chunk. ``first_rows``: where in ``rows`` of symbols each part's start."""

    chunk: int
    start: int
    block: Block
    streams: BlockStreams
    first_rows: tuple[int, ...]
    rows: int


class Batch:
    """Chunks of one length, read to one level, on their way through the stages.

    Call the stages in order: :meth:`decode_symbols`, :meth:`synthesise`, :meth:`scatter`, :meth:`check`. Only the last
    waits for the device. Memory on the device: 8 bytes per number beside the bytes read.
    """

    def __init__(self, device: Device, profile: Profile, chunks: Sequence[Chunk], depth: int) -> None:
        self._device, self._profile, self._chunks = device, profile, chunks
        self._depth = depth
        self._layout: Layout = profile.layout
        self.tokens = chunks[0].container.header.tokens
        self._resident = resident(device, profile)
        self.units = self._read()
        self._held: list[Any] = []  # what queued kernels read
        self._parts: dict[int, tuple[int, int, int, int]] = {}
        self._staging = Staging()
        self._gains = [self._staging.add(unit.streams.gains) for unit in self.units]
        bounds = [*accumulate((unit.rows for unit in self.units), initial=0)]
        self._symbol_rows = bounds[:-1]
        self.symbols = device.xp.zeros(max(bounds[-1] * self.tokens, 1), np.int32)
        widths = [*accumulate((unit.block.width for unit in self.units), initial=0)]
        self._channel_rows = widths[:-1]
        self.channels = device.xp.empty(widths[-1] * self.tokens, np.float32)
        self._statuses = device.xp.zeros(len(self.units) * depth, np.int32)
        self._base = 0

    def _read(self) -> list[Unit]:
        """Parse every segment on the host and decode its side stream there."""
        profile, levels = self._profile, LOSSY_LEVELS[: self._depth]
        places = [
            (index, start)
            for index, chunk in enumerate(self._chunks)
            for start in chunk.container.header.layers
            if start % profile.block_layers == 0
        ]
        blocks = [profile.blocks[start // profile.block_layers] for _, start in places]
        payloads = [
            [self._chunks[index].container.segment(level, start) for level in levels] for index, start in places
        ]
        streams = read_streams(blocks, payloads, tokens=self.tokens)
        units = []
        for (index, start), block, item in zip(places, blocks, streams, strict=True):
            bounds = [*accumulate(item.levels[-1].active, initial=0)]
            units.append(Unit(index, start, block, item, tuple(bounds[:-1]), bounds[-1]))
        return units

    def decode_symbols(self) -> None:
        """Queue the entropy decoding of every level; ``symbols`` will hold the finest level read, unit by unit."""
        offsets = [self._stage(level) for level in range(self._depth)]
        self._offset_means = [
            [self._staging.add(offset.means) for offset in unit.streams.offsets] for unit in self.units
        ]
        self._base = self._staging.send(self._device)
        for level in range(self._depth):
            jobs = self._decode_jobs(level, offsets[level])
            self._held.append(launch(self._device, "kvl_decode", jobs, 1))

    def _stage(self, level: int) -> NDArray[np.uint64]:
        """Offsets ``[3, units]`` of a level's streams, rows and escapes."""
        streams = [unit.streams.levels[level] for unit in self.units]
        classes = np.concatenate([stream.classes for stream in streams])
        counts = np.array([count for stream in streams for count in stream.active])
        firsts = np.array([row for unit in self.units for row in unit.first_rows])
        rows = np.empty(len(classes), ROW)
        # A part's rows are consecutive here and there, but for where they start.
        rows["place"] = np.arange(len(classes)) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
        rows["table"] = tables_of_classes(classes, self._profile.refinements - level) * (1 if level == 0 else 2)
        ends = np.cumsum([[len(stream.classes), len(stream.escapes)] for stream in streams], axis=0)
        own_rows, own_escapes = np.vstack([[0, 0], ends[:-1]]).T
        add = self._staging.add
        rows_at, escapes_at = add(rows), add(np.concatenate([stream.escapes for stream in streams]))
        data = [add(stream.data) for stream in streams]
        offsets = np.stack([data, rows_at + ROW.itemsize * own_rows, escapes_at + 4 * own_escapes])
        return offsets.astype(np.uint64)

    def _decode_jobs(self, level: int, offsets: NDArray[np.uint64]) -> NDArray[np.void]:
        streams = [unit.streams.levels[level] for unit in self.units]
        jobs = np.zeros(len(streams), DECODE)
        jobs["data"], jobs["rows"], jobs["escapes"] = self._base + offsets
        jobs["gains"] = self._base + np.array(self._gains, np.uint64)
        jobs["symbols"] = self._device.address(self.symbols) + 4 * self.tokens * np.array(self._symbol_rows, np.uint64)
        jobs["status"] = self._device.address(self._statuses) + 4 * (level * len(jobs) + np.arange(len(jobs)))
        jobs["tables"] = self._device.address(self._resident.decoder_tables(self._profile.refinements - level))
        jobs["data_bytes"] = [len(stream.data) for stream in streams]
        jobs["row_count"] = [len(stream.classes) for stream in streams]
        jobs["lanes"] = [stream.lanes for stream in streams]
        jobs["escape_count"] = [len(stream.escapes) for stream in streams]
        jobs["tokens"], jobs["refining"] = self.tokens, level > 0
        # Streams take as long as they are; the longest first, so that none is left at the end.
        order = np.argsort(-jobs["row_count"].astype(np.int64), kind="stable")
        return jobs[order][jobs["row_count"][order] > 0]

    def synthesise(self) -> None:
        """Queue the transform to channels, ``[tokens, width]`` of each unit in ``channels``."""
        address, left = self._device.address, self._profile.refinements + 1 - self._depth
        at, factors = 4 * self.tokens, address(self._resident.unit_factors(left))
        symbols_at, channels_at = address(self.symbols), address(self.channels)
        jobs: list[tuple[int | float, ...]] = []
        most = 0
        for index, unit in enumerate(self.units):
            symbols = symbols_at + at * self._symbol_rows[index]
            channels = channels_at + at * self._channel_rows[index]
            means = iter(zip(unit.streams.offsets, self._offset_means[index], strict=True))
            origin = self._chunks[unit.chunk].container.header.first_position == 0
            gains, stride = self._base + self._gains[index], unit.block.width
            for part, row, active in zip(
                unit.block.parts, unit.first_rows, unit.streams.levels[-1].active, strict=True
            ):
                basis, mean, origin_mean, scale = self._part(part)
                offset_at, offset_scale = 0, 1.0
                if part.adaptive:
                    offset, staged = next(means)
                    offset_at, offset_scale = self._base + staged, offset.scale
                first, own = origin_mean if origin else mean, channels + 4 * part.start
                addresses = (symbols + at * row, basis, mean, first, offset_at, scale, factors, gains, own, 0)
                jobs.append((*addresses, stride, active, self.tokens, part.width, left > 0, offset_scale, 0))
                most = max(most, -(-part.width // _TILE))
        table = np.array(jobs, SYNTHESIS)
        self._held.append(launch(self._device, "kvl_synthesise", table, most * -(-self.tokens // _TILE)))

    def _part(self, part: Part) -> tuple[int, int, int, int]:
        """Addresses of a part's basis, mean, mean of the first token of a context, and scale."""
        found = self._parts.get(id(part))
        if found is None:
            address, arrays = self._device.address, self._resident.part(part)
            basis = 0 if arrays.basis is None else address(arrays.basis)
            found = basis, address(arrays.mean), address(arrays.origin_mean), address(arrays.scale)
            self._parts[id(part)] = found
        return found

    def scatter(self, tensors: dict[tuple[int, Kind], Tensor], block_table: NDArray[np.int32]) -> None:
        """Queue the writing to pages, keys turned to their positions."""
        address = self._device.address
        angles = Angles(self._device, [chunk.position for chunk in self._chunks], [self.tokens] * len(self._chunks))
        table = self._device.upload(np.ascontiguousarray(block_table, dtype=np.int32))
        pieces: list[NDArray[np.void]] = []
        most = 0
        for start in sorted({unit.start for unit in self.units}):
            chosen = [
                (unit, row) for unit, row in zip(self.units, self._channel_rows, strict=True) if unit.start == start
            ]
            chunks = np.array([unit.chunk for unit, _ in chosen])
            width = chosen[0][0].block.width
            channels = address(self.channels) + 4 * self.tokens * np.array([row for _, row in chosen], np.uint64)
            for layer in block_range(self._layout, start, self._profile.block_layers):
                for kind in Kind:
                    spec = self._layout.layers[layer]
                    own, rope = spec.width_of(kind), spec.rope_of(kind)
                    if not own:
                        continue
                    jobs = np.zeros(len(chosen), PAGES)
                    tensors[layer, kind].fill(jobs)
                    jobs["channels"], jobs["channel_stride"] = channels, width
                    jobs["first_slot"] = [self._chunks[index].slot for index in chunks]
                    if rope is not None:
                        cos, sin = angles.of(rope)
                        jobs["cos"], jobs["sin"] = cos[chunks], sin[chunks]
                        jobs["pairs"], jobs["first_dim"] = len(rope.inverse_frequencies), rope.first_dim
                        jobs["interleaved"] = rope.interleaved
                    pieces.append(jobs)
                    channels = channels + np.uint64(4 * own)
                    most = max(most, own)
        every = np.concatenate(pieces)
        every["block_table"], every["tokens"] = address(table), self.tokens
        sent = launch(self._device, "kvl_scatter", every, -(-most * self.tokens // _PAGE_THREADS))
        self._held += [angles, table, sent]

    def check(self) -> None:
        """Wait; :class:`InvalidData` where a stream was not exactly its symbols."""
        statuses = self._device.download(self._statuses)
        bad = np.flatnonzero(statuses)
        if len(bad):
            unit = self.units[int(bad[0]) % len(self.units)]
            level = LOSSY_LEVELS[int(bad[0]) // len(self.units)]
            raise InvalidData(f"entropy stream of level {level}, layer {unit.start} {STATUS[int(statuses[bad[0]])]}")
