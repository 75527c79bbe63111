"""What the kernels need again and again, kept on the device: a profile's parts, the coder's tables, angles."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..entropy.model import GAIN_MAX, base_tables, refinement_tables
from ..layout import Rope
from ..profile import Part, Profile
from ..quantise import gain_factors, unit
from .device import Device

__all__ = ["Angles", "Resident", "ResidentPart", "resident"]

_ALL_GAINS = np.arange(GAIN_MAX + 1, dtype=np.uint8)


def packed_basis(basis: NDArray[np.int8]) -> NDArray[np.uint32]:
    """A basis ``[width, width]`` as ``[width / 4 rounded up, width]``: four coefficients of a channel to a word."""
    width = len(basis)
    padded = np.zeros((-(-width // 4) * 4, width), np.int8)
    padded[:width] = basis
    words = np.ascontiguousarray(padded.reshape(-1, 4, width).transpose(0, 2, 1))
    return words.view("<u4").reshape(-1, width).astype(np.uint32)


@dataclass(frozen=True, eq=False)
class ResidentPart:
    """A part's arrays on the device; ``basis`` None where it has no transform."""

    basis: Any
    mean: Any
    origin_mean: Any
    scale: Any


class Resident:
    """A profile on a device. Uploaded piece by piece, as pieces are asked for."""

    def __init__(self, device: Device, profile: Profile) -> None:
        self._device = device
        self._refinements = profile.refinements
        self._arrays: dict[tuple[object, ...], Any] = {}
        self._parts: dict[int, ResidentPart] = {}

    def part(self, part: Part) -> ResidentPart:
        """The arrays that decoding needs of ``part``, which is the profile's and lives as long."""
        found = self._parts.get(id(part))
        if found is None:
            up = self._device.upload
            basis = None if part.basis is None else up(packed_basis(part.basis))
            found = ResidentPart(basis, up(part.mean), up(part.origin_mean), up(part.scale))
            self._parts[id(part)] = found
        return found

    def analysis(self, part: Part) -> Any:
        """What centred channels ``[width, tokens]`` are multiplied by, float32 ``[width, width]``."""
        return self._keep(("analysis", id(part)), lambda: part.forward(np.eye(part.width, dtype=np.float32)))

    def decoder_tables(self, left: int) -> Any:
        """What ``KvlDecode.tables`` is for the level that ``left`` refinements follow."""
        if left == self._refinements:
            return self._keep(("slots", left), lambda: base_tables(left).decoder)
        return self._keep(("thirds", left), lambda: _thirds(refinement_tables(left).frequencies))

    def encoder_tables(self, left: int) -> Any:
        """What ``KvlEncode.tables`` is for that level."""
        tables = base_tables if left == self._refinements else refinement_tables
        return self._keep(("entries", left), lambda: tables(left).encoder)

    def gain_factors(self) -> Any:
        """By what each gain multiplies coefficients before they are quantised."""
        return self._keep(("gains",), lambda: gain_factors(_ALL_GAINS))

    def unit_factors(self, left: int) -> Any:
        """What a unit of the level's symbols stands for, for each gain."""
        return self._keep(("units", left), lambda: np.float32(unit(left)) / gain_factors(_ALL_GAINS))

    def _keep(self, name: tuple[object, ...], make: Any) -> Any:
        if name not in self._arrays:
            self._arrays[name] = self._device.upload(np.ascontiguousarray(make()))
        return self._arrays[name]


def resident(device: Device, profile: Profile) -> Resident:
    """The profile on the device, put there when it is first asked for and dropped with the profile."""
    found: Resident | None = device.memo.get(profile)
    if found is None:
        found = device.memo[profile] = Resident(device, profile)
    return found


class Angles:
    """Cosines and sines of the positions of some chunks, formed on the device in float64, once per distinct RoPE."""

    def __init__(self, device: Device, first_positions: Sequence[int], tokens: Sequence[int]) -> None:
        self._device = device
        pieces = [np.arange(p, p + n, dtype=np.float64) for p, n in zip(first_positions, tokens, strict=True)]
        self._positions = device.upload(np.concatenate(pieces))
        self._starts = np.cumsum([0, *tokens])[:-1]
        self._cache: dict[Rope, tuple[Any, Any]] = {}

    def of(self, rope: Rope, *, back: bool = False) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Addresses of each chunk's cosines and sines ``[tokens, pairs]``; ``back`` turns keys to position 0."""
        xp = self._device.xp
        found = self._cache.get(rope)
        if found is None:
            frequencies = self._device.upload(np.asarray(rope.inverse_frequencies, np.float64))
            angles = self._positions[:, None] * frequencies[None, :]
            sines = xp.sin(angles).astype(np.float32)
            found = self._cache[rope] = (xp.cos(angles).astype(np.float32), -sines if back else sines)
        rows = (self._starts * 4 * len(rope.inverse_frequencies)).astype(np.uint64)
        cos, sin = (np.uint64(self._device.address(array)) + rows for array in found)
        return cos, sin


def _thirds(frequencies: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Frequencies of the first two symbols of each table; the third has the rest."""
    wide = frequencies.astype(np.uint32)
    return np.asarray(wide[:, 0] | wide[:, 1] << 16, dtype=np.uint32)
