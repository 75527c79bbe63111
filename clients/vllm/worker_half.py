"""The workers' half of the connector: carries out the scheduler's plans on the engine's KV caches."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from torch import Tensor

from ... import limits
from ...codec.container import Container
from ...codec.entropy.native import THREADS
from ...codec.layout import LayerLayout, Layout
from ...codec.level import EXACT
from ...codec.profiles import AnyProfile, parse_profile
from ...errors import ConfigError, InvalidRequest, KvloomError, ProfileMismatch, UnsupportedModel
from ...kvstore.key import ContentKey, key_from_hex
from ...kvstore.outcome import Hit, Outcome
from ..client import KvloomClient
from ..plan_wire import PrefillSample
from ..resident import DaemonSource
from . import model
from .decoding import ChunkDecoder
from .load_job import FinishedLoad
from .loading import ChunkLoader
from .pages import KvPages, LayerPages, find_pages
from .parts import LayerPart, parts_of
from .plan import BlendLoad, StepPlan
from .plugin import LOAD_FORMAT, loaded_model
from .saving import ChunkSaver
from .settings import ConnectorSettings
from .stats import Counts

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from .blending import EngineBlender

__all__ = ["WorkerHalf"]

LOGGER: Final = logging.getLogger("vllm.kvloom")
"""Below vLLM's own logger, so that its handlers and levels hold."""


@dataclass(frozen=True, slots=True)
class _Transfers:
    """What moves KV, once it is known where the engine keeps it."""

    loader: ChunkLoader
    saver: ChunkSaver
    blender: "EngineBlender | None"


class WorkerHalf:
    """Carries out plans for one rank.

    ``reported`` are the loads that ended in the current step, ``prefills`` what it took to compute where that is known.
    """

    def __init__(
        self, settings: ConnectorSettings, layout: Layout, rank: int, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._settings, self._layout, self._rank, self._clock = settings, layout, rank, clock
        self._parts = parts_of(layout, settings.layers_per_part)
        self._last_layers = {part.layers[-1]: part for part in self._parts}
        self._layer_numbers: dict[str, int] = {}
        self._saved_parts: set[int] = set()
        self._synchronous = False
        self._began: float | None = None
        self._client = KvloomClient(settings.address, api_key=settings.api_key)
        self._source = DaemonSource(self._client)
        self._profile = self._find_profile()
        self._transfers: _Transfers | None = None
        self._counts = Counts()
        self._idle = False
        self._saved: StepPlan | None = None
        self._blended: list[FinishedLoad] = []
        self.totals = Counts()
        """Since the engine was started, up to the last :meth:`take_counts`."""
        self.reported: list[FinishedLoad] = []
        self.prefills: tuple[PrefillSample, ...] = ()

    def register(self, caches: dict[str, Tensor], config: "VllmConfig", cache_config: "KVCacheConfig") -> None:
        """Find out where the caches keep what, and begin to work."""
        pages = KvPages(list(_layer_pages(caches, self._layout, config, cache_config)))
        self._layer_numbers = {name: index for index, name in enumerate(model.layer_order(caches))}
        # What a GPU was told to compute is not computed when the call returns, so nothing is known of its time here.
        self._synchronous = all(cache.device.type == "cpu" for cache in caches.values())
        settings = self._settings
        decoder = ChunkDecoder((part.layout for part in self._parts), settings.level, self._source.profile)
        loader = ChunkLoader(
            pages,
            self._parts,
            self._get,
            decoder,
            exists=self._client.exists,
            rank=self._rank,
            threads=min(THREADS, limits.ENGINE_LOAD_THREADS_MAX),
            seconds_max=settings.load_seconds_max,
        )
        saver = ChunkSaver(
            pages,
            self._parts,
            {settings.level},
            self._put,
            profile=self._profile,
            rank=self._rank,
            queue_bytes_max=settings.save_queue_bytes,
        )
        self._transfers = _Transfers(loader, saver, self._blender(pages, decoder, config) if settings.blend else None)

    def begin_step(self) -> None:
        """The engine begins to compute a step."""
        self._began = self._clock()
        self.prefills = ()

    def end_forward(self, plan: StepPlan) -> None:
        """The step is computed, as far as the engine's KV goes; once, however often it is said."""
        began, self._began = self._began, None
        if began is not None and plan.prefill is not None and self._synchronous and self._rank == 0:
            done = plan.prefill
            self.prefills = (PrefillSample(done.tokens, done.start, self._clock() - began, done.running),)

    def start_loads(self, plan: StepPlan, *, idle: bool) -> None:
        """Begin the plan's loads; ``idle``: this step computes nothing."""
        self._idle = idle
        for load in plan.loads:
            self._running.loader.start(load)
        for blend in plan.blends:
            self._blend(blend)

    def wait_for_layer(self, name: str) -> None:
        """Wait for what this step reads of a layer."""
        loader = self._running.loader
        if loader.busy and name in self._layer_numbers:
            loader.wait_for_layer(self._layer_numbers[name])

    def save_layer(self, name: str, plan: StepPlan) -> None:
        """A layer of the step is computed: copy and queue the part that it is the last of, where there are several."""
        part = self._last_layers.get(self._layer_numbers.get(name, -1))
        if part is not None and len(self._parts) > 1:
            self._save_part(part, plan)

    def save(self, plan: StepPlan) -> None:
        """Copy the plan's chunks, as far as that is not done, and queue them; however often it is asked for."""
        for part in self._parts:
            self._save_part(part, plan)

    def _save_part(self, part: LayerPart, plan: StepPlan) -> None:
        if plan is not self._saved:
            self._saved, self._saved_parts = plan, set()
        if part.index in self._saved_parts:
            return
        self._saved_parts.add(part.index)
        for chunk in plan.saves:
            self._running.saver.save(chunk, part)

    def finish_loads(self) -> list[FinishedLoad]:
        """The loads that have ended, which are ``reported`` until the next call."""
        loader = self._running.loader
        if self._idle and loader.busy:
            loader.wait(limits.ENGINE_IDLE_SECONDS)
        self.reported, self._blended = [*loader.take_finished(), *self._blended], []
        for load in self.reported:
            self._counts += Counts(
                loads=1,
                failed_loads=int(load.failed_start is not None),
                loaded_tokens=load.tokens,
                loaded_bytes=load.bytes_read,
                load_seconds=load.seconds,
            )
        return self.reported

    def take_counts(self) -> Counts:
        """Since the last call."""
        counts, self._counts = self._counts, Counts()
        if self._transfers is not None:
            counts += self._transfers.saver.take_counts()
        self.totals += counts
        return counts

    def drain(self, seconds_max: float) -> bool:
        """As :meth:`ChunkSaver.drain`."""
        return self._running.saver.drain(seconds_max)

    def close(self) -> None:
        """End the threads."""
        if self._transfers is not None:
            self._transfers.loader.close()
            self._transfers.saver.close()
            if self._transfers.blender is not None:
                self._transfers.blender.close()
        self._client.close()

    @property
    def _running(self) -> "_Transfers":
        if self._transfers is None:
            raise InvalidRequest("KV is to be moved before the engine has registered its caches")
        return self._transfers

    def _get(self, key: ContentKey) -> Outcome[Container]:
        return self._client.get(key, level=self._settings.level)

    def _blender(self, pages: KvPages, decoder: ChunkDecoder, config: "VllmConfig") -> "EngineBlender":
        from .blending import EngineBlender  # here: only who blends needs Transformers' model code
        from .twin import engine_twin

        engine = loaded_model()
        if engine is None:
            raise ConfigError(f"blend needs the engine's weights, which come with --load-format {LOAD_FORMAT}")
        described = config.model_config
        twin = engine_twin(engine, described.hf_text_config, described.dtype, config.device_config.device)
        return EngineBlender(
            twin,
            self._layout,
            pages,
            self._get,
            decoder,
            ratio=self._settings.blend_ratio,
            threads=min(THREADS, limits.ENGINE_LOAD_THREADS_MAX),
            seconds_max=self._settings.load_seconds_max,
        )

    def _blend(self, load: BlendLoad) -> None:
        """Blend a prompt in front of the step that goes on with it."""
        blender = self._running.blender
        if blender is None:
            raise InvalidRequest("documents are to be blended by an engine that was not told to")
        done = blender.run(load)
        self._blended.append(done.load)
        report = done.report
        if report is not None:
            recomputed = report.layer_tokens[-1] - report.fresh_tokens
            self._counts += Counts(
                blends=1,
                blended_tokens=report.stored_tokens,
                recomputed_tokens=recomputed,
                blend_seconds=done.load.seconds,
            )

    def _put(self, key: ContentKey, container: bytes, parent: ContentKey | None) -> None:
        self._client.put(key, container, ack=self._settings.ack, parent=parent)

    def _find_profile(self) -> AnyProfile | None:
        """The profile of the settings, put where every reader finds it."""
        named = self._settings.profile
        if named is None or self._settings.level == EXACT:
            return None
        path = Path(named).expanduser()
        if path.is_file():
            profile = parse_profile(path.read_bytes())
        else:
            outcome = self._client.get_profile(key_from_hex(named))
            if not isinstance(outcome, Hit):
                raise ConfigError(f"profile {named[:80]!r} is no file, and not on the daemon's shelf: {outcome}")
            profile = parse_profile(outcome.value)
        if profile.layout != self._layout:
            raise ProfileMismatch(
                f"profile {profile.digest.hex()[:16]}… was learnt for another layout than this engine's"
            )
        self._source.add_profile(profile)
        try:
            self._client.put_profile(profile.data)
        except KvloomError as error:
            LOGGER.warning("kvloom: the profile could not be put on the daemon's shelf: %s", error)
        return profile


def _layer_pages(
    caches: dict[str, Tensor], layout: Layout, config: "VllmConfig", cache_config: "KVCacheConfig"
) -> Iterator[LayerPages]:
    groups = model.group_of_layers(cache_config)
    names = model.layer_order(groups)
    # Groups may share memory: their blocks are told apart by number. Layers of one group that do would be one layer.
    places = {(groups[name], cache.data_ptr()) for name, cache in caches.items() if name in groups}
    if set(names) != set(caches) or len(places) != len(names):
        raise UnsupportedModel(f"{len(names)} layers keep KV, {len(caches)} caches are registered: layers share KV")
    for name, layer in zip(names, layout.layers, strict=True):
        group = groups[name]
        block_tokens = cache_config.kv_cache_groups[group].kv_cache_spec.block_size
        yield _found_pages(name, caches[name], layer, config, block_tokens, group)


def _found_pages(
    name: str, cache: Tensor, layout: LayerLayout, config: "VllmConfig", block_tokens: int, group: int
) -> LayerPages:
    layer = config.compilation_config.static_forward_context[name]
    update = getattr(layer.impl, "do_kv_cache_update", None)
    if update is None:
        raise UnsupportedModel(f"{name}: {type(layer.impl).__name__} does not let its KV cache be written to")

    def write(keys: Tensor, values: Tensor, blocks: Tensor, slots: Tensor) -> None:
        update(layer, keys, values, blocks, slots)

    return find_pages(name, cache, layout, block_tokens, write, group=group)
