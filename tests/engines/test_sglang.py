"""SGLang's own storage factory and host pools over kvloom: real host memory, a real daemon, no GPU.

What SGLang's controller does with a GPU around these calls has no build for a CPU; its threads' transfer functions,
which need none, are run as they are.
"""

import functools
import signal
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

if find_spec("sglang") is None:
    pytest.skip("SGLang is not installed here: make test-sglang has an environment with it", allow_module_level=True)

import torch

# torchvision's wheels are built for CUDA: beside a CPU build of torch it lacks its operators, and importing it fails.
# SGLang imports it for image models; nothing here runs it.
if torch.version.cuda is None:
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout, KVBuffers, MHABufferInfo, MLABufferInfo
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.storage import StorageBackendFactory
from sglang.srt.mem_cache.utils import get_storage_hash_str

from kvloom.errors import ConfigError

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]
feature = functools.partial(
    pytest.mark.feature,
    "SGLang",
    package="sglang",
    how="SGLang's own storage factory and host pools on a CPU, real daemons; no GPU, no model",
)

PAGE, PAGES, LAYERS = 8, 6, 3
LAYOUTS = ("layer_first", "page_first", "page_first_direct", "page_head")


def mha_pool(layout: str = "page_first", *, heads: int = 2, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A real host pool for a model of 3 layers; its device's side is empty tensors on the CPU."""
    tensors = tuple(torch.zeros(64, heads, 16, dtype=dtype) for _ in range(LAYERS))
    places = torch.zeros(LAYERS, dtype=torch.uint64)
    buffers = KVBuffers(k=tensors, v=tensors, k_data_ptrs=places, v_data_ptrs=places, layout=next(iter(KVBufferLayout)))
    described = MHABufferInfo(
        buffers=buffers,
        page_size=PAGE,
        head_num=heads,
        head_dim=16,
        v_head_dim=16,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    return filled(
        MHATokenToKVPoolHost(
            described,
            2.0,
            0,
            PAGE,
            layout,
            pin_memory=False,
            device_capacity_tokens=64,
            start_layer=0,
            end_layer=LAYERS,
        )
    )


def mla_pool(layout: str = "page_first") -> Any:
    tensors = tuple(torch.zeros(64, 1, 24, dtype=torch.bfloat16) for _ in range(LAYERS))
    described = MLABufferInfo(
        buffers=tensors,
        data_ptrs=torch.zeros(LAYERS, dtype=torch.uint64),
        layer_indices=tuple(range(LAYERS)),
        device_layer_num=LAYERS,
        page_size=PAGE,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        kv_cache_dim=24,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    return filled(
        MLATokenToKVPoolHost(
            described,
            2.0,
            0,
            PAGE,
            layout,
            pin_memory=False,
            device_capacity_tokens=64,
            start_layer=0,
            end_layer=LAYERS,
            target_layer_num=LAYERS,
        )
    )


def filled(pool: Any) -> Any:
    """Every byte of it random."""
    memory = pool.kv_buffer.view(torch.uint8)
    memory.copy_(torch.randint(0, 256, memory.shape, dtype=torch.uint8))
    return pool


def config(extra: dict[str, Any], **changed: Any) -> HiCacheStorageConfig:
    described: dict[str, Any] = {
        "tp_rank": 0,
        "tp_size": 1,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "is_mla_model": False,
        "enable_storage_metrics": False,
        "is_page_first_layout": True,
        "model_name": "a model",
    }
    return HiCacheStorageConfig(**{**described, **changed}, extra_config=extra)


@pytest.fixture
def backend(daemon: Any) -> Iterator[Callable[..., HiCacheStorage]]:
    """Makes backends as SGLang does: by its factory, dynamically, then the pools are registered."""
    made: list[HiCacheStorage] = []

    def make(pool: Any, *, interface_v1: int = 1, kvloom: dict[str, Any] | None = None, **changed: Any) -> Any:
        settings = {"address": daemon.address, "fingerprint": "ab" * 32, "lookup_seconds_max": 20.0, **(kvloom or {})}
        extra = {
            "backend_name": "kvloom",
            "module_path": "kvloom.clients.sglang",
            "class_name": "KvloomHiCache",
            "interface_v1": interface_v1,
            "kvloom": {name: value for name, value in settings.items() if value is not None},
        }
        created = StorageBackendFactory.create_backend("dynamic", config(extra, **changed), pool)
        made.append(created)
        created.register_mem_pool_host(pool)
        created.on_host_pools_registered()
        return created

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVLOOM_DATA_DIR", str(daemon.data_dir))
        yield make
        for item in made:
            item.close()


@pytest.fixture
def keys(rng: np.random.Generator) -> list[str]:
    """SGLang's own hashes of the pages of tokens that no other test has."""
    tokens = rng.integers(0, 2**31, PAGES * PAGE).tolist()
    return get_storage_hash_str(tokens, None, page_size=PAGE)


def slots(first: int = 0) -> torch.Tensor:
    return torch.arange(first * PAGE, (first + PAGES) * PAGE)


def page_bytes(pool: Any, first: int = 0) -> list[bytes]:
    return [pool.get_data_page((first + page) * PAGE).view(torch.uint8).numpy().tobytes() for page in range(PAGES)]


@feature("storage backend of HiCache, loaded dynamically: pages come back bit for bit, also in another process")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.uint8])
def test_pages_of_every_layout_come_back(
    backend: Callable[..., Any], keys: list[str], layout: str, dtype: torch.dtype
) -> None:
    pool = mha_pool(layout, dtype=dtype)
    first = backend(pool)
    assert first.batch_exists(keys) == 0
    assert first.batch_set_v1(keys, slots(), HiCacheStorageExtraInfo(prefix_keys=["ab" * 32])) == [True] * PAGES
    other_pool = mha_pool(layout, dtype=dtype)
    other = backend(other_pool)
    untouched = page_bytes(other_pool)
    assert other.batch_exists(keys) == PAGES
    assert other.batch_exists([*keys[:2], "cd" * 32, *keys[2:]]) == 2
    assert other.exists(keys[-1])
    assert other.batch_get_v1(keys, slots(7)) == [True] * PAGES
    assert page_bytes(other_pool, 7) == page_bytes(pool)
    assert page_bytes(other_pool) == untouched
    assert other.batch_get_v1([keys[0], "cd" * 32, keys[1]], slots()[: 3 * PAGE]) == [True, False, False]


@feature("storage backend of HiCache: MLA, where one rank writes what all read")
@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_latents_are_written_by_one_rank_and_read_by_all(
    backend: Callable[..., Any], keys: list[str], layout: str
) -> None:
    pool, other_pool = mla_pool(layout), mla_pool(layout)
    writer = backend(pool, is_mla_model=True, tp_size=2)
    assert writer.batch_set_v1(keys, slots()) == [True] * PAGES
    reader = backend(other_pool, is_mla_model=True, tp_rank=1, tp_size=2)
    assert reader.batch_get_v1(keys, slots()) == [True] * PAGES
    assert page_bytes(other_pool) == page_bytes(pool)


@feature("storage backend of HiCache: the transfer functions of SGLang's controller, zero-copy and generic")
@pytest.mark.parametrize("interface_v1", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_controllers_own_functions_move_pages(
    backend: Callable[..., Any], keys: list[str], layout: str, interface_v1: int
) -> None:
    def controller(pool: Any) -> Any:
        return SimpleNamespace(
            storage_backend=backend(pool, interface_v1=interface_v1), storage_host_pool=pool, page_size=PAGE
        )

    operation = SimpleNamespace(request_id="r", is_terminated=lambda: False)
    put, get = (
        (HiCacheController._page_set_zero_copy, HiCacheController._page_get_zero_copy)
        if interface_v1
        else (HiCacheController._generic_page_set, HiCacheController._generic_page_get)
    )
    pool, other_pool = mha_pool(layout), mha_pool(layout)
    assert put(controller(pool), keys, slots()) is True
    other = controller(other_pool)
    assert get(other, operation, keys, slots(3)) == PAGES
    assert page_bytes(other_pool, 3) == page_bytes(pool)
    assert get(other, operation, [keys[0], "cd" * 32], slots()[: 2 * PAGE]) == 1


@feature("storage backend of HiCache: nothing is shared between models, ranks, layouts and salts")
def test_pages_of_others_are_not_found(backend: Callable[..., Any], keys: list[str]) -> None:
    assert backend(mha_pool()).batch_set_v1(keys, slots()) == [True] * PAGES
    strangers = [
        backend(mha_pool(), kvloom={"fingerprint": "cd" * 32}),
        backend(mha_pool(), model_name="another"),
        backend(mha_pool(), tp_size=2),
        backend(mha_pool(), pp_size=2, pp_rank=1),
        backend(mha_pool(), attn_cp_size=2),
        backend(mha_pool("page_first_direct")),
        backend(mha_pool("layer_first")),
        backend(mha_pool(heads=4)),
        backend(mha_pool(dtype=torch.float16)),
        backend(mla_pool(), is_mla_model=True),
    ]
    assert [stranger.batch_exists(keys) for stranger in strangers] == [0] * len(strangers)
    assert [any(stranger.batch_get_v1(keys, slots())) for stranger in strangers] == [False] * len(strangers)


def test_salts_and_adapters_begin_sglangs_own_chain_of_hashes() -> None:
    tokens = list(range(2 * PAGE))
    named = [
        get_storage_hash_str(RadixKey(tokens, extra_key=extra, cache_salt=salt), None, page_size=PAGE)
        for extra, salt in ((None, None), ("lora", None), (None, "salt"), ("lora", "salt"))
    ]
    assert len({key for chain in named for key in chain}) == 8


@feature("storage backend of HiCache: several pools (batch v2), with the pages that each must have of a prefix")
def test_a_hit_is_as_long_as_all_pools_have_it(backend: Callable[..., Any], keys: list[str]) -> None:
    kv, indexer = mha_pool(), mla_pool()
    stores = backend(kv)
    stores.register_mem_host_pool_v2(kv, PoolName.KV)
    stores.register_mem_host_pool_v2(indexer, PoolName.INDEXER)
    both = [
        PoolTransfer(PoolName.KV, host_indices=slots(), keys=keys),
        PoolTransfer(PoolName.INDEXER, host_indices=slots()[: 4 * PAGE], keys=keys[:4]),
    ]
    assert stores.batch_set_v2(both) == {PoolName.KV: [True] * PAGES, PoolName.INDEXER: [True] * 4}
    every = stores.batch_exists_v2(keys, [PoolTransfer(PoolName.INDEXER)])
    assert (every.kv_hit_pages, every.extra_pool_hit_pages) == (4, {PoolName.KV: PAGES, PoolName.INDEXER: 4})
    assert every.restorable_prefix_pages == [1, 2, 3, 4]
    last = PoolTransfer(PoolName.INDEXER, keys=keys[-1:], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    assert stores.batch_exists_v2(keys, [last]).kv_hit_pages == 4
    unknown = stores.batch_exists_v2(keys, [PoolTransfer(PoolName.MAMBA)])
    assert (unknown.kv_hit_pages, unknown.restorable_prefix_pages) == (0, [])
    assert stores.batch_exists_v2(keys).kv_hit_pages == PAGES

    kv_back, indexer_back = mha_pool(), mla_pool()
    loads = backend(kv_back)
    loads.register_mem_host_pool_v2(indexer_back, PoolName.INDEXER)
    assert loads.batch_get_v2(both) == {PoolName.KV: [True] * PAGES, PoolName.INDEXER: [True] * 4}
    assert page_bytes(kv_back) == page_bytes(kv)
    assert page_bytes(indexer_back)[:4] == page_bytes(indexer)[:4]


def test_single_calls_take_tensors_and_refuse_what_is_no_page(backend: Callable[..., Any], keys: list[str]) -> None:
    pool = mha_pool()
    stores = backend(pool, interface_v1=0)
    page = pool.get_data_page(0)
    assert stores.set(keys[0], page)
    assert stores.get(keys[0]).view(torch.uint8).equal(page.view(torch.uint8))
    target = torch.zeros_like(page)
    assert stores.get(keys[0], target) is target
    assert target.view(torch.uint8).equal(page.view(torch.uint8))
    assert not stores.set(keys[1], page[1:])
    assert not stores.set(keys[1])
    assert stores.get(keys[0], page[1:].clone()) is None
    assert stores.get(keys[1]) is None
    assert stores.batch_set_v1(keys, slots()[1:]) == [False] * PAGES
    assert stores.batch_get_v1(keys, None) == [False] * PAGES


def test_clear_forgets_what_is_stored(backend: Callable[..., Any], keys: list[str]) -> None:
    stores = backend(mha_pool())
    assert stores.batch_set_v1(keys, slots()) == [True] * PAGES
    assert stores.clear() is True
    assert stores.batch_exists(keys) == 0


@feature("storage backend of HiCache: a daemon that is gone, frozen or damaged costs misses and bounded time")
def test_a_daemon_that_is_gone_or_frozen_costs_misses(
    backend: Callable[..., Any], daemon: Any, keys: list[str]
) -> None:
    stores = backend(mha_pool(), kvloom={"lookup_seconds_max": 0.2, "load_seconds_max": 0.5})
    assert stores.batch_set_v1(keys, slots()) == [True] * PAGES
    patient = backend(mha_pool(), kvloom={"load_seconds_max": 0.5})
    daemon.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert patient.batch_get_v1(keys, slots()) == [False] * PAGES
    assert stores.batch_exists(keys) == 0
    for _ in range(20):  # it is not asked each time
        assert stores.batch_get_v1(keys, slots()) == [False] * PAGES
        assert stores.batch_exists_v2(keys, []).kv_hit_pages == 0
    assert time.monotonic() - began < 60
    daemon.signal(signal.SIGCONT)
    daemon.kill()
    gone = backend(mha_pool())
    assert gone.batch_get_v1(keys, slots()) == [False] * PAGES
    assert gone.batch_set_v1(keys, slots()) == [False] * PAGES
    assert gone.batch_get(keys) == [None] * PAGES
    assert not gone.exists(keys[0])
    assert gone.clear() is False
    daemon.start()


def test_pages_that_are_damaged_are_misses(backend: Callable[..., Any], daemon: Any, keys: list[str]) -> None:
    pool = mha_pool(heads=256)
    stores = backend(pool, kvloom={"ack": "disk"})
    assert stores.batch_set_v1(keys, slots()) == [True] * PAGES
    daemon.stop()
    assert daemon.damage() > 0
    daemon.start()
    back = mha_pool(heads=256)
    came = backend(back).batch_get_v1(keys, slots())
    assert False in came
    found, kept = page_bytes(back), page_bytes(pool)
    assert all(found[index] == kept[index] for index, there in enumerate(came) if there)


def test_weights_that_are_nowhere_have_to_be_named_and_settings_are_checked(
    backend: Callable[..., Any], tmp_path: Path, keys: list[str]
) -> None:
    with pytest.raises(ConfigError, match="say which they are with fingerprint"):
        backend(mha_pool(), kvloom={"fingerprint": None})
    with pytest.raises(ConfigError, match="no setting 'adress'"):
        backend(mha_pool(), kvloom={"adress": "127.0.0.1:1"})
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    one = backend(mha_pool(), kvloom={"fingerprint": None}, model_name=str(tmp_path))
    assert one.batch_set_v1(keys, slots()) == [True] * PAGES
    (tmp_path / "config.json").write_text("{}")
    other = backend(mha_pool(), kvloom={"fingerprint": None}, model_name=str(tmp_path))
    assert other.batch_exists(keys) == 0


def test_a_full_batch_of_sglangs_is_taken_at_once(backend: Callable[..., Any], rng: np.random.Generator) -> None:
    pool = mha_pool()
    chain = get_storage_hash_str(rng.integers(0, 2**31, 128 * PAGE).tolist(), None, page_size=PAGE)
    stores = backend(pool, kvloom={"load_seconds_max": 60.0})
    indices = slots()[:PAGE].repeat(128)
    assert all(stores.batch_set_v1(chain, indices))
    assert all(stores.batch_get_v1(chain, indices))
    assert stores.batch_exists(chain) == 128
