"""What the scheduler's half decides of requests whose documents are to be blended. Knows no vLLM.

A document's KV was stored as that of a prompt of its own, beginning and all, so its chunks are named as those of that
prompt are. What of them is stored is read and blended by the worker in the step that computes the prompt's last token;
to the engine, all but this one are loaded. Nothing of such a request is stored: its KV is not exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...kvstore.key import ModelIdentity
from ..sequence import SequenceChunks, ShardedChunk
from .lookup import ChunkLookup
from .marking import Marks
from .plan import BlendChunk, BlendLoad, BlockTables, place
from .settings import ConnectorSettings

__all__ = ["DocumentPlanner"]


@dataclass(slots=True)
class _Record:
    """A request. ``chunks`` is what is stored of its documents, None before that was asked."""

    tokens: tuple[int, ...]
    marks: Marks
    identities: Sequence[ModelIdentity]
    chunks: list[BlendChunk] | None = None
    refused: bool = False


@dataclass(slots=True)
class DocumentPlanner:
    """Plans blends for the requests of one engine. Not safe for use by two threads at once."""

    settings: ConnectorSettings
    lookup: ChunkLookup
    _records: dict[str, _Record] = field(default_factory=dict)
    _blends: list[BlendLoad] = field(default_factory=list)

    def knows(self, request_id: str) -> bool:
        """Whether :meth:`begin` was called for it."""
        return request_id in self._records

    def begin(
        self,
        request_id: str,
        tokens: Sequence[int],
        marks: Marks,
        identities: Sequence[ModelIdentity],
    ) -> None:
        """A request for the prompt ``tokens``; ``identities`` name what its documents were stored as."""
        self._records[request_id] = _Record(tuple(tokens), marks, identities)

    def matched_tokens(self, request_id: str, computed: int) -> int:
        """How many tokens after the ``computed`` ones that the engine has will be there without it computing them.

        All but the prompt's last, or none: where the engine has some already, it computes the rest.
        """
        record = self._records[request_id]
        if record.refused or computed:
            return 0
        if record.chunks is None:
            record.chunks = self._stored(record)
        worth_it = sum(item.tokens - item.skip for item in record.chunks) >= self.settings.load_tokens_min
        return len(record.tokens) - 1 if worth_it else 0

    def plan_load(self, request_id: str, tokens: int, blocks: BlockTables) -> None:
        """The engine has made room for the first ``tokens`` tokens, in ``blocks``."""
        record = self._records[request_id]
        target = place(ShardedChunk((), None, 0, tokens), blocks)
        self._blends.append(
            BlendLoad(request_id, record.tokens, tuple(record.chunks or ()), target, record.marks.ratio)
        )

    def load_failed(self, request_id: str) -> None:
        """The request was not blended, and is being computed."""
        if request_id in self._records:
            self._records[request_id].refused = True

    def end(self, request_id: str) -> bool:
        """Forget a request; whether it was known."""
        return self._records.pop(request_id, None) is not None

    def take(self) -> tuple[BlendLoad, ...]:
        """What was planned since the last call."""
        blends, self._blends = tuple(self._blends), []
        return blends

    def _stored(self, record: _Record) -> list[BlendChunk]:
        """The chunks of all documents that are stored; the first document's with the beginning of the prompt."""
        begins = record.marks.documents[0].start
        wanted: list[BlendChunk] = []
        asked: list[ShardedChunk] = []
        for number, span in enumerate(record.marks.documents):
            tokens = record.tokens[:begins] + record.tokens[span.start : span.stop]
            chunks = SequenceChunks(record.identities, self.settings.chunk_tokens)
            tail = chunks.tail(tokens, len(tokens))
            for chunk in [*chunks.full(tokens), *([tail] if tail is not None else [])]:
                skip = max(0, begins - chunk.start) if number else 0
                if skip < chunk.tokens:
                    start = chunk.start + skip + (span.start - begins if number else 0)
                    wanted.append(BlendChunk(chunk.keys[0], chunk.start, chunk.tokens, skip, start))
                    asked.append(chunk)
        found = self.lookup.stored(asked) or []
        return [item for item, is_stored in zip(wanted, found, strict=False) if is_stored]
