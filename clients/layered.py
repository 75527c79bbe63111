"""Decode chunks that have come behind a model that computes: the layers that it comes to first, first.

A blend asks for the stored layers in order. So chunks are decoded in pieces of a few layers, one piece of every chunk
before the next of any, by the workers that have loaded them, and whoever asks for a layer waits for its piece only.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, overload

from numpy.typing import NDArray

from ..blend.cache import KvCache
from ..codec.container import Container
from ..codec.level import EXACT, LossyCodec
from ..errors import KvloomError, StorageUnavailable
from .arrivals import ChunkPlace, LoadOrder, Work

__all__ = ["LayeredDecoding", "LayersToCome"]

_PIECE_LAYERS: Final = 6
"""Layers decoded at a time, and as many more as make whole blocks of the codec."""

Decode = Callable[[LoadOrder, Container, range], bool]
"""Decodes some layers of a container into place; False where it cannot be used."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some layers of a chunk; the lists of pieces are worked off in the order of layers, then of places."""

    order: LoadOrder
    container: Container
    layers: range

    @property
    def turn(self) -> tuple[int, int]:
        """When it is this one's turn."""
        return self.layers.start, self.order.place.start


class LayeredDecoding:
    """Chunks on their way from containers into a cache of so many ``layers``.

    :meth:`add` what is to be decoded, from any thread; then :meth:`start`, after which one thread waits for layers.
    Nothing is written to the cache any more when :meth:`close` returns. ``token_bytes`` is what a token's KV takes.
    """

    def __init__(
        self,
        workers: ThreadPoolExecutor,
        decode: Decode,
        *,
        layers: int,
        token_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._workers, self._decode, self._clock = workers, decode, clock
        self._layers, self._token_bytes = layers, token_bytes
        self._changed = threading.Condition()
        self._left: list[_Piece] = []
        self._reached: dict[int, set[int]] = {}
        self._running = 0
        self._failure = ""
        self._works: list[Work] = []

    def add(self, order: LoadOrder, container: Container) -> bool:
        """Take a chunk; False where the container has not all its tokens and layers."""
        header = container.header
        if header.tokens != order.place.ref.tokens or header.layers != range(self._layers):
            return False
        if header.codec is LossyCodec.CACHEGEN and order.level != EXACT:
            step = self._layers
        else:
            block = header.block_layers or 1
            step = block * -(-_PIECE_LAYERS // block)
        pieces = [
            _Piece(order, container, range(start, min(start + step, self._layers)))
            for start in range(0, self._layers, step)
        ]
        with self._changed:
            self._left += pieces
            self._reached[order.place.start] = set()
        return True

    def start(self) -> None:
        """Begin; nothing may be added any more."""
        with self._changed:
            self._left.sort(key=lambda piece: piece.turn, reverse=True)
        for _ in range(len(self._left)):
            self._workers.submit(self._work)

    def wait(self, place: ChunkPlace, layer: int) -> None:
        """Return when ``layer`` of the chunk at ``place`` is decoded; :class:`StorageUnavailable` if it will not be."""
        reached = self._reached[place.start]
        if layer in reached:
            return
        with self._changed:
            self._changed.wait_for(lambda: layer in reached or self._failure)
            if layer not in reached:
                raise StorageUnavailable(self._failure)

    def finish(self) -> None:
        """Wait for all layers of all chunks; :class:`StorageUnavailable` where one will not come."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not (self._left or self._running))
            if self._failure:
                raise StorageUnavailable(self._failure)

    def close(self) -> None:
        """Begin nothing more, and wait for what is being decoded. Idempotent."""
        with self._changed:
            if self._left:
                self._fail("the chunks are not wanted any more")
            self._changed.wait_for(lambda: not self._running)

    def measured(self) -> list[Work]:
        """What decoding took so far."""
        with self._changed:
            return list(self._works)

    def layers_of(self, place: ChunkPlace, cache: KvCache) -> tuple["LayersToCome", "LayersToCome"]:
        """Keys and values of the chunk at ``place``, where they come to stand in ``cache``."""
        arrays = [cache.layer_arrays(layer) for layer in range(self._layers)]
        span = slice(place.start, place.stop)
        return (
            LayersToCome(self, place, [item.keys[:, span] for item in arrays]),
            LayersToCome(self, place, [item.values[:, span] for item in arrays]),
        )

    def _work(self) -> None:
        with self._changed:
            if not self._left:
                return
            piece = self._left.pop()
            self._running += 1
        began, done = self._clock(), False
        try:
            done = self._decode(piece.order, piece.container, piece.layers)
        except KvloomError:
            pass  # whatever is wrong with what is stored, the text is still there
        finally:
            with self._changed:
                self._running -= 1
                if done:
                    self._reached[piece.order.place.start].update(piece.layers)
                    size = piece.container.header.tokens * self._token_bytes * len(piece.layers) // self._layers
                    self._works.append(Work(None, piece.order.level, size, began, self._clock()))
                else:
                    place = piece.order.place
                    self._fail(f"layers {piece.layers.start} on of the chunk at {place.start} cannot be decoded")
                self._changed.notify_all()

    def _fail(self, why: str) -> None:
        """With the condition held: let go of all that is left."""
        self._failure = self._failure or why
        self._left.clear()
        self._changed.notify_all()


class LayersToCome(Sequence[NDArray[Any]]):
    """Keys or values of a chunk, a view ``[kv_heads, tokens, head_dim]`` per layer, each waited for when it is taken.

    Raises :class:`StorageUnavailable` for one that will not come.
    """

    def __init__(self, decoding: LayeredDecoding, place: ChunkPlace, rooms: Sequence[NDArray[Any]]) -> None:
        self._decoding, self._place, self._rooms = decoding, place, rooms

    def __len__(self) -> int:
        return len(self._rooms)

    @overload
    def __getitem__(self, layer: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, layer: slice) -> Sequence[NDArray[Any]]: ...
    def __getitem__(self, layer: int | slice) -> NDArray[Any] | Sequence[NDArray[Any]]:
        if isinstance(layer, slice):
            return [self[index] for index in range(len(self))[layer]]
        self._decoding.wait(self._place, range(len(self))[layer])
        return self._rooms[layer]
