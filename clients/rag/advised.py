"""A plan as one prompt's executor follows it: what to load, until when each is waited for, and what is decided anew."""

import math
from dataclasses import dataclass

from ..arrivals import ChunkPlace, Halfway, LoadOrder
from ..cut import Stretch, best_cut
from ..overdue import look_again_seconds, overdue_seconds, seen_byte_seconds
from ..plan_wire import ChunkAction, PlanQuestion, PlanReply, Reason

__all__ = ["Advice", "PlanPreview"]


@dataclass(frozen=True, slots=True)
class PlanPreview:
    """What a plan says of a question. ``str()`` of it is a sentence.

    ``raced`` chunks are loaded, and computed if the model gets there first. ``load_bytes`` come over the link.
    ``recompute_seconds``: what computing everything is expected to take. ``recompute_ratio``: of blended chunks, the
    part to compute again. ``prefetching``: chunks on their way into the daemon's memory.
    """

    loaded: int
    raced: int
    recomputed: int
    load_bytes: int
    expected_seconds: float
    recompute_seconds: float
    recompute_ratio: float | None = None
    prefetching: int = 0

    def __str__(self) -> str:
        raced = f", race {self.raced}" if self.raced else ""
        return (
            f"this question will load {self.loaded} chunks{raced}, recompute {self.recomputed}, "
            f"expected {self.expected_seconds * 1e3:,.0f} ms"
        )


@dataclass(frozen=True, slots=True)
class Advice:
    """A plan for the chunks at ``places`` of a prompt that has ``prompt_tokens`` from the first of them on."""

    places: tuple[ChunkPlace, ...]
    prompt_tokens: int
    reply: PlanReply
    question: PlanQuestion

    def orders(self, began: float) -> list[LoadOrder]:
        """What to ask for, in this order, for a request that ``began`` then.

        One that is raced is not waited for.
        """
        untils, found = self.untils(began), []
        for index in self.reply.load_order:
            place, decision = self.places[index], self.reply.decisions[index]
            if decision.level is not None:
                until = untils.get(place, -math.inf)
                found.append(LoadOrder(place, decision.level, decision.link, decision.size_bytes, until))
        return found

    def untils(self, began: float) -> dict[ChunkPlace, float]:
        """Until when each chunk that is loaded is waited for, of a request that ``began`` then.

        Where it is decided anew about a chunk that is overdue, that is when it is; else it is waited for past the
        moment when it was expected for as long as computing it takes: whatever the link does, that is twice too long at
        most.
        """
        decisions = self.reply.decisions
        loads = [index for index in self.reply.load_order if decisions[index].action is ChunkAction.LOAD]
        # They come in the order in which they are asked for, two at a time, whichever is the first in the prompt.
        expected = sorted(decisions[index].seconds for index in loads)
        found = {}
        for index, seconds in zip(loads, [*expected[1:], *expected[-1:]], strict=True):
            computing = self._compute_seconds(self.places[index])
            waits = overdue_seconds(seconds, computing) if self.revisable else seconds + computing
            found[self.places[index]] = began + waits
        return found

    def decided_anew(self, halfway: Halfway, passed_seconds: float) -> dict[ChunkPlace, float]:
        """For how many seconds more each chunk that is still to be loaded is waited for, ``passed_seconds`` on.

        As the planner decides, with the link as fast as it was so far, and without asking: the answer would come behind
        the chunks. Of what is on its way, half is taken to have come. Before the first has come nobody knows how fast
        the link is, and it is waited for past the moment when it was expected for as long as computing it takes.
        """
        sizes = {self.places[at]: float(self.reply.decisions[at].size_bytes) for at in self.reply.load_order}
        coming = sum(sizes.get(place, 0.0) for place in halfway.moving)
        came = sum(sizes.get(place, 0.0) for place in halfway.there)
        byte_seconds = seen_byte_seconds(coming, came and came + coming / 2, passed_seconds)
        left = [place for place in self.places if place.start >= halfway.front and place not in halfway.there]
        moving = [
            sizes[place] * byte_seconds / (2 if place in halfway.moving else 1) if place in sizes else math.inf
            for place in left
        ]
        behind = max(1, (self.question.prompt_tokens or 0) - self.places[-1].stop)
        computing = [*map(self._compute_seconds, left), self.reply.recompute_seconds * behind / self.prompt_tokens]
        stretch = Stretch(
            computing,
            [*moving, math.inf],
            [0.0] * len(computing),
            0.0,
            0.0,
            0.0,
            False,
            self.question.decoding_competes,
        )
        length = best_cut(stretch).length
        again, there, found = look_again_seconds(passed_seconds), 0.0, dict[ChunkPlace, float]()
        most = math.inf if came else self._first_seconds() - passed_seconds
        if most <= 0.0:
            return found
        transfers = dict(zip(left[length:], moving[length:], strict=True))
        for at in self.reply.load_order:
            place = self.places[at]
            if place in transfers:
                there += transfers[place]
                found[place] = min(max(there, again), most)
        return found

    def _first_seconds(self) -> float:
        """How long the first chunk that comes is waited for at the most."""
        first = self.reply.load_order[0]
        # An engine that holds has a chunk on its way that the plan at first would rather compute.
        expected = min(self.reply.decisions[index].seconds for index in self.reply.load_order)
        return max(expected, self.reply.hold_seconds) + self._compute_seconds(self.places[first])

    @property
    def revisable(self) -> bool:
        """Whether it may be decided anew on the way: what is blended is all loaded before anything is computed."""
        return self.question.blend is None

    def ends(self, began: float) -> float:
        """When no transfer is of any use to the request any more."""
        return max([began + self.reply.recompute_seconds, *self.untils(began).values()])

    def _compute_seconds(self, place: ChunkPlace) -> float:
        return self.reply.recompute_seconds * place.ref.tokens / self.prompt_tokens

    @property
    def loads_nothing(self) -> bool:
        """Whether there is something to load which computing is faster than."""
        computed = any(item.reason is Reason.COMPUTE_FASTER for item in self.reply.decisions)
        return computed and not self.reply.load_order

    def preview(self) -> PlanPreview:
        """The plan in a few numbers."""
        reply = self.reply
        actions = [item.action for item in reply.decisions]
        return PlanPreview(
            loaded=actions.count(ChunkAction.LOAD),
            raced=actions.count(ChunkAction.RACE),
            recomputed=actions.count(ChunkAction.RECOMPUTE),
            load_bytes=sum(item.size_bytes for item in reply.decisions if item.action is not ChunkAction.RECOMPUTE),
            expected_seconds=reply.ttft_seconds,
            recompute_seconds=reply.recompute_seconds,
            recompute_ratio=reply.recompute_ratio,
            prefetching=reply.prefetching,
        )
