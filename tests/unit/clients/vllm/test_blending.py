"""Transformers' code over an engine's modules, and prompts blended into an engine's blocks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import tiny_models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.model

from blake3 import blake3  # noqa: E402
from torch import nn  # noqa: E402

from kvloom import codec  # noqa: E402
from kvloom.blend.cache import BlendCache  # noqa: E402
from kvloom.clients.sequence import SequenceChunks  # noqa: E402
from kvloom.clients.transformers import model_layout  # noqa: E402
from kvloom.clients.vllm.blending import EngineBlender, blend_rule  # noqa: E402
from kvloom.clients.vllm.blocks import block_spans  # noqa: E402
from kvloom.clients.vllm.decoding import ChunkDecoder  # noqa: E402
from kvloom.clients.vllm.document_plan import DocumentPlanner  # noqa: E402
from kvloom.clients.vllm.lookup import ChunkLookup  # noqa: E402
from kvloom.clients.vllm.marking import mark_documents, read_marks  # noqa: E402
from kvloom.clients.vllm.pages import KvPages, LayerPages  # noqa: E402
from kvloom.clients.vllm.plan import BlendLoad, BlockTables  # noqa: E402
from kvloom.clients.vllm.settings import ConnectorSettings  # noqa: E402
from kvloom.clients.vllm.twin import engine_twin  # noqa: E402
from kvloom.codec.container import Container  # noqa: E402
from kvloom.codec.level import EXACT  # noqa: E402
from kvloom.errors import UnsupportedModel  # noqa: E402
from kvloom.kvstore.key import ModelIdentity  # noqa: E402
from kvloom.kvstore.outcome import Hit, Miss, Unavailable  # noqa: E402

BLOCK, CHUNK = 8, 16
SIZES = {**tiny_models.SIZES, "tie_word_embeddings": False}


class Packed(nn.Module):
    """As vLLM's linear modules: several in one matrix, rows only, and a bias that may be the caller's to add."""

    def __init__(self, parts: list[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([part.weight for part in parts]))
        biases = [part.bias for part in parts if part.bias is not None]
        self.bias = nn.Parameter(torch.cat(biases)) if biases else None

    def forward(self, rows: Any) -> Any:
        assert rows.ndim == 2
        return nn.functional.linear(rows, self.weight, self.bias), None


class Engine(nn.Module):
    """A Transformers model, its projections packed as vLLM's are."""

    packed_modules_mapping: ClassVar = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        for module in list(self.model.modules()):
            children = dict(module.named_children())
            for packed, names in self.packed_modules_mapping.items():
                if all(name in children for name in names):
                    setattr(module, packed, Packed([children[name] for name in names]))
                    for name in names:
                        delattr(module, name)
            for name in ("o_proj", "down_proj"):
                if name in children:
                    setattr(module, name, Packed([children[name]]))


def models(name: str, **options: Any) -> tuple[Any, Any]:
    """A Transformers model, and the same one taken apart."""
    torch.manual_seed(7)
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    made = [getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation="sdpa") for _ in "12"]
    made[1].load_state_dict(made[0].state_dict())
    whole, apart = (item.eval().requires_grad_(False) for item in made)
    return whole, engine_twin(Engine(apart), config, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "options"), [("Llama", {}), ("Qwen2", {}), ("Qwen3", {"head_dim": 16}), ("Mistral", {})]
)
def test_a_twin_computes_what_the_model_does_and_holds_no_weights_of_its_own(
    name: str, options: dict[str, Any]
) -> None:
    whole, twin = models(name, **options)
    tokens = torch.arange(40)[None] % 96
    expected = whole.model(input_ids=tokens).last_hidden_state
    assert torch.allclose(twin(input_ids=tokens).logits, expected, atol=1e-5)
    again = twin(input_ids=tokens.flip(1)).logits  # nothing of the first input is left
    assert torch.allclose(again, whole.model(input_ids=tokens.flip(1)).last_hidden_state, atol=1e-5)
    ours = {parameter.data_ptr() for parameter in twin.parameters()}
    assert sum(parameter.numel() for parameter in twin.parameters()) < 2000  # norms
    assert ours


def test_an_engine_built_otherwise_is_refused() -> None:
    config = transformers.LlamaConfig(**SIZES)
    made = transformers.LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    engine = Engine(made)
    del engine.model.layers[2].mlp.gate_up_proj
    with pytest.raises(UnsupportedModel, match=r"layers\.2\.mlp"):
        engine_twin(engine, config, torch.float32, torch.device("cpu"))
    gemma = transformers.Gemma2Config(**SIZES, head_dim=8)
    with pytest.raises(UnsupportedModel, match="Gemma2Config"):
        engine_twin(Engine(made), gemma, torch.float32, torch.device("cpu"))


@dataclass
class Store:
    """Chunks of prompts that a model has computed, as the connector stores them."""

    model: Any
    identities: list[ModelIdentity]
    kept: dict[bytes, Any]

    def store(self, tokens: list[int]) -> None:
        layout = model_layout(self.model)
        cache = BlendCache(layout, len(tokens))
        self.model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
        chunks = SequenceChunks(self.identities, CHUNK)
        for chunk in [*chunks.full(tokens), *filter(None, [chunks.tail(tokens, len(tokens))])]:
            arrays = [cache.layer_arrays(layer) for layer in range(len(layout.layers))]
            keys, values = (
                [getattr(item, kind)[:, chunk.start : chunk.stop] for item in arrays] for kind in ("keys", "values")
            )
            self.kept[chunk.keys[0]] = codec.encode(
                keys, values, layout=layout, first_position=chunk.start, levels={EXACT}, content_key=chunk.keys[0]
            )

    def get(self, key: bytes) -> Any:
        return Hit(Container.parse(self.kept[key]), "memory") if key in self.kept else Miss()

    def exists(self, keys: Any) -> list[bool]:
        return [key in self.kept for key in keys]


@pytest.fixture(scope="module")
def twins() -> tuple[Any, Any]:
    return models("Llama")


@pytest.fixture
def store(twins: tuple[Any, Any]) -> Store:
    layout = model_layout(twins[0])
    return Store(twins[0], [ModelIdentity(blake3(b"tiny").digest(), layout.digest())], {})


def pages_of(layout: Any, blocks: int) -> KvPages:
    return KvPages(
        [
            LayerPages(*(torch.full((blocks, layer.kv_heads, BLOCK, layer.head_dim), float("nan")) for _ in "kv"))
            for layer in layout.layers
        ]
    )


PROMPT = mark_documents(list(range(5)), [list(range(10, 50)), list(range(50, 80)), list(range(80, 95))], [1, 2, 3, 4])


def planned(store: Store, prompt: Any = PROMPT) -> BlendLoad:
    planner = DocumentPlanner(ConnectorSettings(chunk_tokens=CHUNK), ChunkLookup(store.exists, 60.0))
    marks = read_marks(prompt.kv_transfer_params, prompt.cache_salt, len(prompt.token_ids))
    planner.begin("r", prompt.token_ids, marks, store.identities)
    tokens = planner.matched_tokens("r", 0)
    assert tokens == len(prompt.token_ids) - 1
    planner.plan_load("r", tokens, BlockTables((list(range(3, 3 + -(-tokens // BLOCK))),), (BLOCK,)))
    (load,) = planner.take()
    return load


def blend(
    twins: tuple[Any, Any],
    load: BlendLoad,
    get: Callable[[bytes], Any],
    *,
    ratio: float | None = None,
) -> tuple[Any, Any]:
    """What a blend came to, and keys and values ``[layers, 2, heads, tokens, head_dim]`` in the engine's blocks."""
    layout = model_layout(twins[0])
    pages = pages_of(layout, 20)
    decoder = ChunkDecoder([layout], EXACT, lambda digest: None)
    blender = EngineBlender(twins[1], layout, pages, get, decoder, ratio=ratio, seconds_max=60)
    try:
        done = blender.run(load)
    finally:
        blender.close()
    tokens = load.target.tokens
    kept = []
    for layer in pages._layers:
        for room in (layer.keys, layer.values):
            spans = block_spans(list(range(3, 20)), BLOCK, 0, tokens)
            kept.append(torch.cat([room[span.block, :, : span.tokens] for span in spans], dim=1))
    return done, torch.stack(kept)


def computed(twins: tuple[Any, Any]) -> Any:
    """The same of a full prefill."""
    layout = model_layout(twins[0])
    cache = BlendCache(layout, len(PROMPT.token_ids))
    twins[0](input_ids=torch.tensor([PROMPT.token_ids]), past_key_values=cache, use_cache=True)
    return torch.stack([room[0, :, :-1] for layer in cache.kv_layers for room in (layer.keys, layer.values)])


def test_all_recomputed_is_a_full_prefill_and_nothing_recomputed_is_what_was_stored(
    twins: tuple[Any, Any], store: Store
) -> None:
    for tokens in PROMPT.to_store:
        store.store(tokens)
    load = planned(store)
    expected = computed(twins)
    done, whole = blend(twins, load, store.get, ratio=1.0)
    assert done.load.failed_start is None
    assert done.load.failed_blocks == frozenset()
    assert done.load.tokens == 5 + 40 + 30 + 15
    assert torch.allclose(whole, expected, atol=1e-4)
    done, reused = blend(twins, load, store.get, ratio=0.0)
    assert done.report.recompute_ratio == 0
    first = 5 + 40  # the prompt's beginning and the first document are where they were computed
    assert torch.allclose(reused[:, :, :first], expected[:, :, :first], atol=1e-4)
    assert torch.allclose(reused[:2, :, :90], expected[:2, :, :90], atol=1e-4)  # no layer before has seen a neighbour
    assert not torch.allclose(reused[2:, :, 45:90], expected[2:, :, 45:90], atol=1e-2)
    done, mended = blend(twins, load, store.get, ratio=0.5)
    assert 0 < done.report.recompute_ratio <= 1
    assert (mended - expected).square().mean() < (reused - expected).square().mean()


def test_a_short_prompt_is_computed_again_also_where_it_stands_as_stored(twins: tuple[Any, Any], store: Store) -> None:
    short = mark_documents(list(range(5)), [list(range(10, 40)), list(range(50, 60))], [1, 2, 3, 4])
    for tokens in short.to_store:
        store.store(tokens)
    done, _ = blend(twins, planned(store, short), store.get)
    assert (done.load.tokens, done.report.stored_tokens, done.report.recompute_ratio) == (45, 45, 1.0)


def test_what_does_not_come_is_computed_and_where_nothing_comes_the_engine_computes(
    twins: tuple[Any, Any], store: Store
) -> None:
    for tokens in PROMPT.to_store:
        store.store(tokens)
    load, expected = planned(store), computed(twins)
    lost = load.chunks[-1].key
    done, whole = blend(twins, load, lambda key: Miss() if key == lost else store.get(key), ratio=1.0)
    assert done.load.failed_start is None
    assert done.load.tokens == 90 - (load.chunks[-1].tokens - load.chunks[-1].skip)
    assert torch.allclose(whole, expected, atol=1e-4)
    for get, silent in ((lambda key: Miss(), False), (lambda key: Unavailable("memory", "gone"), True)):
        done, left = blend(twins, load, get)
        assert (done.load.failed_start, done.load.silent, done.report) == (0, silent, None)
        assert done.load.failed_blocks == load.target.blocks
        assert left.isnan().all()


def test_a_chunk_of_another_length_or_place_is_not_taken(twins: tuple[Any, Any], store: Store) -> None:
    for tokens in PROMPT.to_store:
        store.store(tokens)
    load = planned(store)
    wrong = replace(
        load, chunks=tuple(replace(item, first_position=item.first_position + 1) for item in load.chunks[:-1])
    )
    done, _ = blend(twins, wrong, store.get)
    assert done.load.failed_start == 0


def test_the_rule_is_the_blenders_default_unless_a_ratio_is_given() -> None:
    assert blend_rule(None).ratio == pytest.approx(0.12)
    assert blend_rule(0.3).ratio == 0.3
    assert blend_rule(0.0).ratio == 0.0
