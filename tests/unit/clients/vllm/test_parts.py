"""Parts of a model's layers: every layer in one of them, and no two parts of one name."""

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from kvloom.clients.vllm.parts import parts_of, shard_identities
from kvloom.codec.layout import Layout

MODEL = blake3(b"model").digest()


def layout(layers: int, rank: int = 0, ranks: int = 1) -> Layout:
    whole = Layout.uniform(layers=layers, kv_heads=2, head_dim=8)
    return Layout(whole.dtype, whole.layers, rank, ranks)


@given(st.integers(1, 40), st.integers(0, 45))
def test_every_layer_is_in_one_part_and_in_its_order(layers: int, per_part: int) -> None:
    parts = parts_of(layout(layers), per_part)
    assert [layer for part in parts for layer in part.layers] == list(range(layers))
    assert [part.index for part in parts] == list(range(len(parts)))
    assert all(len(part.layout.layers) == len(part.layers) for part in parts)
    assert per_part or len(parts) == 1


def test_parts_of_equal_layout_have_names_of_their_own() -> None:
    layouts = [layout(6, rank, 2) for rank in range(2)]
    identities = shard_identities(MODEL, layouts, 2)
    assert len({item.fields() for item in identities}) == 6
    other = shard_identities(MODEL, layouts, 3)
    assert not {item.fields() for item in identities} & {item.fields() for item in other}


def test_whole_models_are_named_as_every_other_client_names_them() -> None:
    (identity,) = shard_identities(MODEL, [layout(6)], 0)
    assert (identity.fingerprint, identity.layout_digest) == (MODEL, layout(6).digest())
    assert shard_identities(MODEL, [layout(6)], 6) == [identity]
