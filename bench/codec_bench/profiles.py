"""What schemes learn from the calibration text, kept in a folder under the digest of all that it was made from."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from blake3 import blake3
from quantisers import KvQuant
from quantisers.kvquant import LayerTables

from kvloom import codec
from kvloom.clients.transformers import calibration_samples, fitted
from kvloom.codec import STANDARD, KvSample, Profile
from kvloom.codec.cachegen import CacheGenProfile, CacheGenUnit, calibrate_cachegen

from .progress import Progress
from .reference import write_npz
from .subject import Subject
from .texts import Texts

CACHEGEN_BIN_SCALES = (1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125)
"""So many that the curve reaches below a KL divergence of 0.005 on every model measured."""
_ROOT = Path(inspect.getfile(codec)).parent.parent
_SOURCES = {
    "kvloom": "codec/*.py",
    "cachegen": "codec/cachegen*.py",
    "kvquant": "bench/quantisers/*.py",
}
"""The code that makes each profile, besides what makes the samples: a change of it makes another."""
_SAMPLE_SOURCES = "clients/transformers/*.py"


class Profiles:
    """Profiles of one model from one calibration text. Samples are computed when a profile is not in the folder."""

    def __init__(self, subject: Subject, texts: Texts, cache: Path, progress: Progress | None = None) -> None:
        self._subject, self._texts, self._cache = subject, texts, cache
        self._progress = progress or Progress()
        self._made_from = f"{subject.folder.name} {texts.calibration_digest}"

    @cached_property
    def samples(self) -> list[KvSample]:
        """KV of every calibration sequence, with gradients."""
        texts, found = self._texts.calibration, list[KvSample]()
        for sample in calibration_samples(self._subject.model, texts, layout=self._subject.layout):
            found.append(sample)
            self._progress.say(f"calibration text {len(found)} of {len(texts)}")
        return found

    def release(self) -> None:
        """Forget the samples, gigabytes that no profile made already asks for."""
        self.__dict__.pop("samples", None)

    def kvloom(self) -> Profile:
        """The calibrated profile."""

        def make() -> bytes:
            made = codec.calibrate(self.samples, self._subject.layout)
            self._progress.say("kvloom's profile is made; its steps are fitted to the divergence aimed at")
            return fitted(made, self._subject.model, self._texts.calibration).data

        return Profile.from_bytes(self._kept("kvloom", "", make))

    def kvloom_generic(self) -> Profile:
        """The profile that needs no calibration."""
        return codec.generic_profile(self._subject.layout)

    def kvloom_single_rate(self, step_scale: float) -> Profile:
        """A calibrated profile of one level, all its steps multiplied."""
        calibrated = self.kvloom()
        # The finest step of a profile with one level is that level's; of one with four it is half of standard's.
        return replace(calibrated, refinements=0).scaled(step_scale * 2 ** (calibrated.refinements - STANDARD.code))

    def cachegen(self, unit: CacheGenUnit) -> CacheGenProfile:
        """CacheGen's distributions, one level per bin scale."""

        def make() -> bytes:
            samples = self.samples
            self._progress.say(f"CacheGen's distributions, bins in units of {unit} values")
            made = calibrate_cachegen(samples, self._subject.layout, bin_scales=CACHEGEN_BIN_SCALES, unit=unit)
            return made.data

        return CacheGenProfile.from_bytes(self._kept("cachegen", f"{unit} {CACHEGEN_BIN_SCALES}", make))

    def kvquant(self, bits: int) -> KvQuant:
        """KVQuant's codebooks and ranges."""
        path = self._path("kvquant", str(bits), ".npz")
        fields = ("keys", "values", "low", "high")
        layers = range(len(self._subject.layout.layers))
        if not path.exists():
            self._progress.say(f"KVQuant's tables of {bits} bits")
            tables = KvQuant.calibrate(self.samples, self._subject.layout, bits).tables
            write_npz(path, **{f"{name}{n}": getattr(tables[n], name) for n in layers for name in fields})
        with np.load(path) as file:
            read = tuple(LayerTables(*(file[f"{name}{n}"] for name in fields)) for n in layers)
        return KvQuant(bits, self._subject.layout, read)

    def _path(self, what: str, options: str, suffix: str) -> Path:
        name = blake3(f"{self._made_from} {what} {options}".encode())
        for pattern in (_SOURCES[what], _SAMPLE_SOURCES):
            for source in sorted(_ROOT.glob(pattern)):
                name.update(source.read_bytes())
        return self._cache / f"{what}-{name.hexdigest()[:32]}{suffix}"

    def _kept(self, what: str, options: str, make: Callable[[], bytes]) -> bytes:
        path = self._path(what, options, ".bin")
        if path.exists():
            return path.read_bytes()
        data = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_bytes(data)
        draft.replace(path)
        return data
