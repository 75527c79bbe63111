"""Pages of two models, ranks, pools or layouts never have the same name; those of one always do."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from kvloom.clients.opaque import OpaqueRows
from kvloom.clients.sglang.naming import PageNames, pool_identity
from kvloom.codec.layout import KvDtype
from kvloom.errors import ConfigError

HASHES = ["0a" * 32, "0b" * 32]


@dataclass(frozen=True)
class Config:
    """The fields of SGLang's HiCacheStorageConfig that are read."""

    model_name: str | None = "a model"
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    attn_cp_rank: int = 0
    attn_cp_size: int = 1
    dcp_rank: int = 0
    dcp_size: int = 1
    logical_page_size: int | None = None
    is_mla_model: bool = False


def named(config: Config, *, name: str = "kv", fingerprint: str | None = "ab" * 32, **pool: Any) -> bytes:
    host = SimpleNamespace(**{"dtype": "torch.bfloat16", "layout": "page_first", "page_size": 64, **pool})
    rows = OpaqueRows.of(4096, KvDtype.BFLOAT16)
    identity = pool_identity(config, host, name, [2048, 2048], rows, fingerprint)
    return b"".join(PageNames(identity).of(HASHES))


def test_every_field_tells_pages_apart() -> None:
    base = Config()
    others = [replace(base, **{field: 7}) for field in Config.__dataclass_fields__ if field != "is_mla_model"]
    names = [
        named(base),
        *(named(other) for other in others),
        named(base, name="indexer"),
        named(base, fingerprint="cd" * 32),
        named(base, dtype="torch.float16"),
        named(base, layout="layer_first"),
        named(base, page_size=32),
        named(base, storage_format_tag="packed"),
    ]
    assert len(set(names)) == len(names)
    assert named(base) == named(Config())


def test_latents_are_one_for_all_ranks_and_states_and_heads_are_not() -> None:
    one, two = (Config(is_mla_model=True, tp_size=2, tp_rank=rank) for rank in (0, 1))
    assert named(one) == named(two)
    assert named(one, name="mamba") != named(two, name="mamba")
    assert named(one, name="draft", v_head_dim=64) != named(two, name="draft", v_head_dim=64)


def test_weights_that_cannot_be_told_from_others_have_to_be_named() -> None:
    for name in (None, "", "org/model"):
        with pytest.raises(ConfigError, match="fingerprint"):
            named(Config(model_name=name), fingerprint=None)
