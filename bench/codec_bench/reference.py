"""The KV of each evaluation context and what the model says after it, computed once and kept in a folder."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .subject import CONTEXT, FOLLOWING, Kv, Subject
from .texts import TextKind, Texts, TokenIds, digest_of


@dataclass(frozen=True, slots=True)
class Reference:
    """A context of ``CONTEXT`` tokens: its KV, and log-probabilities float64 ``[FOLLOWING, vocabulary]`` after it."""

    kind: TextKind
    ids: TokenIds
    kv: Kv
    log_probabilities: Tensor

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the tokens that really follow, in nats."""
        return nll_of(self.log_probabilities, self.ids)


def nll_of(log_probabilities: Tensor, ids: TokenIds) -> float:
    """Mean negative log-likelihood of the tokens that follow the context in ``ids``."""
    true = torch.from_numpy(ids[CONTEXT + 1 : CONTEXT + FOLLOWING + 1])[:, None]
    return -float(log_probabilities.gather(1, true).mean())


def references(subject: Subject, texts: Texts, cache: Path) -> Iterator[Reference]:
    """One context after the other, the kinds in turn; what the folder ``cache`` does not hold is put there."""
    for one_of_each in zip_longest(*texts.evaluation.values()):
        for kind, ids in zip(texts.evaluation, one_of_each, strict=True):
            if ids is not None:
                yield _reference(subject, kind, ids, cache / f"{subject.folder.name}-{digest_of([ids])[:32]}.npz")


def _reference(subject: Subject, kind: TextKind, ids: TokenIds, path: Path) -> Reference:
    layers = range(len(subject.layout.layers))
    if path.exists():
        with np.load(path) as file:
            kv = Kv([file[f"keys{n}"] for n in layers], [file[f"values{n}"] for n in layers])
            logits = torch.from_numpy(file["logits"])
    else:
        kv = subject.kv(ids[:CONTEXT])
        logits = subject.following(ids, kv.keys, kv.values)
        arrays = {f"keys{n}": kv.keys[n] for n in layers} | {f"values{n}": kv.values[n] for n in layers}
        write_npz(path, logits=logits.numpy(), **arrays)
    return Reference(kind, ids, kv, torch.log_softmax(logits.double(), dim=-1))


def write_npz(path: Path, **arrays: Any) -> None:
    """Write ``path``, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as draft:
        try:
            np.savez(draft, **arrays)
            draft.flush()
            Path(draft.name).replace(path)
        finally:
            Path(draft.name).unlink(missing_ok=True)
