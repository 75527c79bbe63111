"""The backend itself: SGLang's HiCacheStorage over a kvloom daemon.

SGLang calls it from threads of its own (one asks and reads, one writes), which an exception would cost a request and a
hang all that follow: neither comes from here.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolHitPolicy, PoolName, PoolTransferResult

from ...codec.container import Container
from .exchange import RowExchange
from .hits import PoolPages, PoolPolicy, leading, restorable_prefix
from .naming import PageNames, pool_identity
from .pages import Bytes, HostPages, bytes_of, host_pages
from .settings import HiCacheSettings

__all__ = ["KvloomHiCache"]

LOGGER: Final = logging.getLogger("sglang.kvloom")
_KV: Final = PoolName.KV.value
_LIMITING: Final = {
    PoolHitPolicy.ALL_PAGES: PoolPolicy.ALL_PAGES,
    PoolHitPolicy.TRAILING_PAGES: PoolPolicy.TRAILING_PAGES,
}


@dataclass(frozen=True, slots=True)
class _Pool:
    """One registered host pool."""

    host: Any
    pages: HostPages
    names: PageNames

    def slots(self, indices: Any, count: int) -> Sequence[Any] | None:
        """The slots of each of ``count`` pages; None where ``indices`` are not those of so many."""
        page_size = getattr(self.host, "page_size", 1) or 1
        if indices is None or indices.numel() != count * page_size:
            return None
        found: Sequence[Any] = indices.reshape(-1).split(page_size)
        return found


class KvloomHiCache(HiCacheStorage):  # type: ignore[misc]
    """What ``--hicache-storage-backend dynamic`` loads (docs/ENGINES.md); ``options`` are nobody's at present."""

    def __init__(self, storage_config: Any, options: Mapping[str, Any] | None = None) -> None:
        extra = storage_config.extra_config or {}
        settings = HiCacheSettings.parse(extra)
        self._config, self._fingerprint = storage_config, settings.fingerprint
        self._in_place = bool(extra.get("interface_v1", 0))
        self._exchange = RowExchange(settings)
        self._pools: dict[str, _Pool] = {}

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Take in the pool that holds the KV."""
        super().register_mem_pool_host(mem_pool_host)
        self._register(_KV, mem_pool_host, in_place=self._in_place)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Take in a pool of what else a model keeps of a prefix."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if str(host_pool_name) != _KV or _KV not in self._pools:
            self._register(str(host_pool_name), host_pool, in_place=True)

    def exists(self, key: str) -> bool:
        """Whether a page of KV is stored."""
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many pages of KV are stored before the first that is not."""
        return leading(self._stored(_KV, keys))

    def batch_exists_v2(self, keys: list[str], pool_transfers: Any = None, extra_info: Any = None) -> Any:
        """The longest prefix that all pools can restore, and what each of them has of it."""
        pools = {
            transfer.name: PoolPages(
                self._stored(str(transfer.name), keys),
                _LIMITING[transfer.hit_policy],
                max(1, len(transfer.keys or ())),
            )
            for transfer in pool_transfers or ()
            if transfer.hit_policy in _LIMITING
        }
        kv = self._stored(_KV, keys)
        hits = restorable_prefix(kv, pools)
        by_pool = {name: pages for name, pages in ((PoolName.KV, leading(kv)), *hits.by_pool.items()) if pages}
        return PoolTransferResult(hits.pages, by_pool, hits.lengths)

    def batch_get_v1(self, keys: list[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        """Read pages of KV into the host pool; for each, whether it is there now."""
        return self._load(_KV, keys, host_indices)

    def batch_set_v1(self, keys: list[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        """Store pages of KV from the host pool; for each, whether it is stored now."""
        return self._store(_KV, keys, host_indices, extra_info)

    def batch_get_v2(self, transfers: Any, extra_info: Any = None) -> dict[str, list[bool]]:
        """The same for pages of any pools."""
        return {item.name: self._load(str(item.name), item.keys or [], item.host_indices) for item in transfers}

    def batch_set_v2(self, transfers: Any, extra_info: Any = None) -> dict[str, list[bool]]:
        """The same for pages of any pools."""
        return {
            item.name: self._store(str(item.name), item.keys or [], item.host_indices, extra_info) for item in transfers
        }

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        """A page of KV in ``target_location``, or in a tensor of its own; None where there is none."""
        found = self.batch_get([key], None if target_location is None else [target_location])
        return found[0]

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> list[Any]:
        """Pages of KV as flat tensors; None from the first on that is not there."""
        pool = self._pools.get(_KV)
        if pool is None:
            return [None] * len(keys)
        targets = target_locations or [pool.host.get_dummy_flat_data_page() for _ in keys]
        rows = _rows(targets, pool)
        if len(rows) != len(keys):
            return [None] * len(keys)

        def decode(index: int, container: Container) -> bool:
            pool.pages.rows.decode_into(container, [rows[index]])
            return True

        came = self._exchange.load(pool.names.of(keys), _checked(pool, decode))
        return [target if there else None for target, there in zip(targets, came, strict=True)]

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Store a page of KV from a tensor; whether it is stored now."""
        return self.batch_set([key], [value])

    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """Store pages of KV from tensors; whether all are stored now."""
        pool = self._pools.get(_KV)
        if pool is None or values is None:
            return False
        rows = _rows([value if value is None else value.contiguous() for value in values], pool)
        if len(rows) != len(keys):
            return False
        names = pool.names.of(keys)
        encode = pool.pages.rows.encode
        return all(self._exchange.store(names, lambda index: encode([rows[index]], names[index]), None))

    def clear(self) -> bool:
        """Forget all that this key's tenant has stored, whichever model it is of; needs scope ``admin``."""
        return self._exchange.clear()

    def close(self) -> None:
        """Close the connections to the daemon."""
        self._exchange.close()

    def _register(self, name: str, pool: Any, *, in_place: bool) -> None:
        pages = host_pages(pool, in_place=in_place)
        if pages is None:
            LOGGER.warning("kvloom: the host pool %s has no pages to give, so it is not stored", name)
            return
        identity = pool_identity(self._config, pool, name, pages.piece_bytes, pages.rows, self._fingerprint)
        self._pools[name] = _Pool(pool, pages, PageNames(identity))

    def _stored(self, name: str, keys: list[str]) -> list[bool]:
        pool = self._pools.get(name)
        return [False] * len(keys) if pool is None else self._exchange.stored(pool.names.of(keys))

    def _load(self, name: str, keys: list[str], host_indices: Any) -> list[bool]:
        pool = self._pools.get(name)
        slots = None if pool is None else pool.slots(host_indices, len(keys))
        if pool is None or slots is None:
            return [False] * len(keys)

        def decode(index: int, container: Container) -> bool:
            pool.pages.decode_into(container, slots[index])
            return True

        return self._exchange.load(pool.names.of(keys), _checked(pool, decode))

    def _store(self, name: str, keys: list[str], host_indices: Any, extra_info: Any) -> list[bool]:
        pool = self._pools.get(name)
        slots = None if pool is None else pool.slots(host_indices, len(keys))
        if pool is None or slots is None:
            return [False] * len(keys)
        names = pool.names.of(keys)
        before = getattr(extra_info, "prefix_keys", None)
        parent = pool.names.of(before[-1:])[0] if before else None
        return self._exchange.store(names, lambda index: pool.pages.encode(slots[index], names[index]), parent)


def _checked(pool: _Pool, decode: Callable[[int, Container], bool]) -> Callable[[int, Container], bool]:
    """A row of another size is none of this pool's."""
    return lambda index, container: container.header.tokens == pool.pages.rows.tokens and decode(index, container)


def _rows(tensors: Sequence[Any], pool: _Pool) -> list[Bytes]:
    """The tensors' own memory, of those that can be pages of the pool."""
    return [
        row
        for tensor in tensors
        if isinstance(tensor, torch.Tensor) and tensor.is_contiguous() and tensor.device.type == "cpu"
        if (row := bytes_of(tensor)).size == pool.pages.rows.row_bytes
    ]
