"""What the scheduler's half decides: what of a request is stored, what to load, and which chunks each step completes.

Knows requests only as tokens and counts, so that it runs without an engine. A request is looked up when the engine
asks what is stored, its load is planned when it has blocks, and after every step the chunks that the step completed
are saved: full ones, the tail of the prompt, and, when the request ends, the tail of the answer. What the look-up found
stored is not saved; what failed to load is, so that a damaged chunk is replaced by the one that was computed instead.

A request may also await what another engine is computing: then everything of its prompt that will be stored counts as
found, and the load waits for it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ... import limits
from ...kvstore.key import ContentKey
from ..sequence import SequenceChunks, ShardedChunk
from .advice import LOAD_ALL, Advice
from .lookup import ChunkLookup
from .plan import BlockTables, PlacedChunk, RequestLoad, StepPlan, StepPrefill, place
from .settings import ConnectorSettings

__all__ = ["RequestPlanner"]


@dataclass(slots=True)
class _Record:
    """What is known of a request. ``handled`` full chunks were saved, or need not be."""

    chunks: SequenceChunks
    prompt_tokens: int
    awaited: bool = False
    matched: list[ShardedChunk] = field(default_factory=list)
    advice: Advice = LOAD_ALL
    stored: set[int] = field(default_factory=set)
    looked_up: float = -limits.ENGINE_LOOKUP_REUSE_SECONDS
    looked_up_tokens: int = 0
    computed: int = 0
    handled: int = 0
    tail_handled: bool = False
    unloadable: bool = False


class RequestPlanner:
    """Plans loads and saves for the requests of one engine. Not safe for use by two threads at once.

    ``advise`` is asked how much of what was found to load for a prompt of so many tokens. Tokens from a prompt's last
    one on are never loaded with ``keep_last``.
    """

    def __init__(
        self,
        settings: ConnectorSettings,
        lookup: ChunkLookup,
        *,
        advise: Callable[[Sequence[ShardedChunk], int], Advice] = lambda chunks, prompt_tokens: LOAD_ALL,
        keep_last: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._lookup = lookup
        self._advise, self._keep_last = advise, keep_last
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._loads: list[RequestLoad] = []
        self._saves: list[PlacedChunk] = []
        self._released: list[str] = []
        self._saving: OrderedDict[ContentKey, float] = OrderedDict()

    def knows(self, request_id: str) -> bool:
        """Whether :meth:`begin` was called for it."""
        return request_id in self._records

    def begin(self, request_id: str, chunks: SequenceChunks, prompt_tokens: int, *, awaited: bool = False) -> None:
        """A request whose KV may be stored and loaded; others are never mentioned to this object.

        ``awaited``: another engine is computing its prompt.
        """
        self._records[request_id] = _Record(chunks, prompt_tokens, awaited)

    def plan_of(self, request_id: str) -> bytes | None:
        """Which plan was followed for a request."""
        return self._records[request_id].advice.plan

    def matched_tokens(self, request_id: str, tokens: Sequence[int], computed: int) -> int:
        """How many of ``tokens`` can be loaded after the ``computed`` ones that the engine has; 0 or worth a load.

        May be asked again for a request that found no room; the answer is then not looked up anew each time.
        """
        record = self._records[request_id]
        record.computed = computed
        if record.unloadable:
            return 0
        fresh = self._clock() - record.looked_up < limits.ENGINE_LOOKUP_REUSE_SECONDS
        if not fresh or record.looked_up_tokens != len(tokens):
            self._look_up(record, tokens)
            self._take_advice(record, len(tokens))
        found = record.matched[: record.advice.chunks]
        reach = found[-1].stop if found else 0
        if self._keep_last:
            reach = min(reach, len(tokens) - 1)
        worth_it = self._settings.load and reach - computed >= self._settings.load_tokens_min
        return reach - computed if worth_it else 0

    def plan_load(self, request_id: str, tokens: int, blocks: BlockTables) -> None:
        """The engine has made room for ``tokens`` of what :meth:`matched_tokens` said, in ``blocks``."""
        record = self._records[request_id]
        start, stop = record.computed, record.computed + tokens
        links = record.advice.links + (None,) * len(record.matched)
        placed = tuple(
            place(chunk, blocks, start=start, stop=stop, link=link)
            for chunk, link in zip(record.matched, links, strict=False)
            if chunk.stop > start and chunk.start < stop
        )
        if placed:
            settings = self._settings
            seconds = settings.await_seconds_max if record.awaited else record.advice.seconds_max
            if seconds is not None and not record.awaited:
                seconds = min(seconds, settings.load_seconds_max)
            self._loads.append(RequestLoad(request_id, placed, seconds, record.awaited, settings.load_by_layer))

    def load_failed(self, request_id: str, start: int, *, silent: bool) -> None:
        """The chunk of a request that begins at ``start`` did not come; ``silent``: nobody answered in time."""
        if silent:
            self._lookup.pause()
        record = self._records.get(request_id)
        if record is None:
            return
        failed = start // self._settings.chunk_tokens
        for chunk in record.matched[failed:]:
            self._saving.pop(chunk.keys[0], None)
        record.unloadable = True
        record.stored = {index for index in record.stored if index < failed}
        record.handled = min(record.handled, failed)
        record.tail_handled = False

    def step(self, request_id: str, tokens: Sequence[int], computed: int, blocks: Callable[[], BlockTables]) -> None:
        """The coming step computes the request up to ``computed`` tokens, of which ``tokens`` are known."""
        record = self._records[request_id]
        reach = min(computed, len(tokens))
        size = self._settings.chunk_tokens
        prompt_reached = reach >= record.prompt_tokens and not record.tail_handled
        if not self._settings.save or (reach // size <= record.handled and not prompt_reached):
            return
        wanted: list[ShardedChunk] = []
        if reach // size > record.handled:
            full = record.chunks.full(tokens[: reach - reach % size])
            wanted += [
                chunk for index, chunk in enumerate(full) if index >= record.handled and index not in record.stored
            ]
            record.handled = len(full)
        if prompt_reached:
            record.tail_handled = True
            wanted += self._tail(record, tokens, record.prompt_tokens) if self._settings.save_tails else []
        self._save(wanted, blocks)

    def finish(self, request_id: str, tokens: Sequence[int], computed: int, blocks: BlockTables) -> bool:
        """The request ends with ``computed`` tokens' KV in its blocks; whether these are needed until it is released.

        With ``computed`` 0 nothing of it is saved.
        """
        record = self._records.pop(request_id, None)
        if record is None or not self._settings.save or not self._settings.save_answers or not computed:
            return False
        before = len(self._saves)
        reach = min(computed, len(tokens))
        if reach > record.prompt_tokens:
            self._save(self._tail(record, tokens, reach), lambda: blocks)
        if len(self._saves) == before:
            return False
        self._released.append(request_id)
        return True

    def take(self, prefill: StepPrefill | None = None) -> StepPlan:
        """What was planned since the last call, for a step with that ``prefill``.

        A step that waits for what it loads says nothing of computing, and its prefill is left out.
        """
        told = None if any(load.by_layer for load in self._loads) else prefill
        plan = StepPlan(tuple(self._loads), tuple(self._saves), tuple(self._released), told)
        self._loads, self._saves, self._released = [], [], []
        return plan

    def _look_up(self, record: _Record, tokens: Sequence[int]) -> None:
        full = record.chunks.full(tokens)
        record.looked_up, record.looked_up_tokens = self._clock(), len(tokens)
        record.matched = []
        if record.awaited:
            prompt = tokens[: record.prompt_tokens]
            tail = self._tail(record, prompt, len(prompt)) if self._settings.save_tails else []
            record.matched = [*record.chunks.full(prompt), *tail]
            record.stored, record.tail_handled = set(range(len(record.matched))), True
            return
        found = self._stored(full)
        if found is None:
            return
        record.stored = {index for index, is_stored in enumerate(found) if is_stored}
        leading = found.index(False) if False in found else len(found)
        record.matched = full[:leading]
        start = leading * self._settings.chunk_tokens
        stop = min(start + self._settings.chunk_tokens - 1, len(tokens))
        stops = range(start + limits.ENGINE_TAIL_TOKENS_MIN, stop + 1)
        tails = record.chunks.tails(tokens, start, stops) if stops and self._settings.save_tails else []
        stored = [tail for tail, is_stored in zip(tails, self._stored(tails) or (), strict=False) if is_stored]
        if stored:
            record.matched = [*record.matched, stored[-1]]
            record.tail_handled = record.tail_handled or stored[-1].stop == record.prompt_tokens

    def _stored(self, chunks: Sequence[ShardedChunk]) -> list[bool] | None:
        """As :meth:`ChunkLookup.stored`; what is not there, and should long have come, is no longer on its way."""
        found = self._lookup.stored(chunks)
        late = self._clock() - limits.ENGINE_SAVE_SECONDS_MAX
        for chunk, is_stored in zip(chunks, found or (), strict=False):
            if not is_stored and self._saving.get(chunk.keys[0], late) < late:
                del self._saving[chunk.keys[0]]
        return found

    def _take_advice(self, record: _Record, tokens: int) -> None:
        """Have it decided how much of what was found to load."""
        ahead = [chunk for chunk in record.matched if chunk.stop > record.computed]
        known = len(record.matched) - len(ahead)
        worth_asking = ahead and ahead[-1].stop - record.computed >= self._settings.load_tokens_min
        advice = LOAD_ALL
        if worth_asking and self._settings.load and not record.awaited:
            advice = self._advise(ahead, tokens)
        record.advice = replace(advice, chunks=known + advice.chunks, links=(None,) * known + advice.links)

    def _tail(self, record: _Record, tokens: Sequence[int], stop: int) -> list[ShardedChunk]:
        tail = record.chunks.tail(tokens, stop)
        return [tail] if tail is not None and tail.tokens >= limits.ENGINE_TAIL_TOKENS_MIN else []

    def _save(self, wanted: Sequence[ShardedChunk], blocks: Callable[[], BlockTables]) -> None:
        """Plan to save what is not on its way already, and is still in the blocks of layers with a short window."""
        now = self._clock()
        for chunk in wanted:
            began = self._saving.get(chunk.keys[0])
            if began is not None and now - began < limits.ENGINE_SAVES_REMEMBERED_SECONDS:
                continue
            placed = place(chunk, blocks())
            if any(sum(span.tokens for span in group) < chunk.tokens for group in placed.spans):
                continue
            self._saving[chunk.keys[0]] = now
            self._saving.move_to_end(chunk.keys[0])
            if len(self._saving) > limits.ENGINE_SAVES_REMEMBERED_MAX:
                self._saving.popitem(last=False)
            self._saves.append(placed)
