"""What the planner is measured against: every plan there is, and a replay of one, event by event.

Both follow the model that docs/PLANNER.md describes, and share no code with the planner.
"""

from dataclasses import dataclass, replace

import numpy as np

from kvloom.daemon.planner.outlook import Outlook
from kvloom.daemon.planner.plan import Action, Plan
from kvloom.daemon.planner.request import Ability, Chunk, Executor

__all__ = ["Outcome", "best_within", "fastest", "frontier", "replay"]


@dataclass(frozen=True)
class Outcome:
    """One plan that no other betters in both."""

    seconds: float
    loss: float
    """nats per token"""


@dataclass(frozen=True)
class _State:
    paths: tuple[float, ...]
    there: float
    engine: float
    loss: float
    computing: bool

    def costs(self) -> tuple[float, ...]:
        return (*self.paths, self.there, self.engine, self.loss)


def frontier(chunks: list[Chunk], outlook: Outlook, executor: Executor) -> list[Outcome]:
    """The exact dynamic programme: all states after each chunk that no other state is at least as good as."""
    names = sorted({outlook.links[offer.link].path or offer.link for chunk in chunks for offer in chunk.offers})
    starts = dict.fromkeys(names, 0.0)
    for link, cost in outlook.links.items():
        name = cost.path or link
        if name in starts:
            starts[name] = max(starts[name], cost.wait_seconds + cost.latency_seconds)
    serial = executor.ability is Ability.PREFIX_CUT or not executor.side_by_side
    states = [
        _State(tuple(starts[name] for name in names), 0.0, 0.0 if serial else outlook.prefill.wait_seconds, 0.0, False)
    ]
    for chunk in chunks:
        grown: list[_State] = []
        for state in states:
            grown.append(_computed(state, chunk, outlook, executor, serial))
            if executor.ability is Ability.PREFIX_CUT and state.computing:
                continue
            grown.extend(_loaded(state, chunk, offer, names, outlook, executor, serial) for offer in chunk.offers)
        states = _undominated(grown)
    tokens = sum(chunk.tokens for chunk in chunks)
    wait = outlook.prefill.wait_seconds
    outcomes = [
        Outcome(max(s.there, wait) + s.engine if serial else max(s.there, s.engine), s.loss / tokens) for s in states
    ]
    return sorted(outcomes, key=lambda outcome: (outcome.seconds, outcome.loss))


def _computed(state: _State, chunk: Chunk, outlook: Outlook, executor: Executor, serial: bool) -> _State:
    prefill = outlook.prefill
    seconds = prefill.token_seconds * chunk.tokens
    seconds += prefill.token_context_seconds * chunk.tokens * (chunk.start + chunk.tokens / 2)
    if executor.step_tokens:
        seconds += prefill.call_seconds * chunk.tokens / executor.step_tokens
    if not state.computing:
        seconds += prefill.call_seconds
    begun = state.engine if serial else max(state.engine, state.there)
    return replace(state, engine=begun + seconds, computing=True)


def _loaded(state, chunk, offer, names, outlook, executor, serial) -> _State:
    cost = outlook.links[offer.link]
    lane = names.index(cost.path or offer.link)
    arrived = state.paths[lane] + offer.size_bytes * cost.byte_seconds
    paths = (*state.paths[:lane], arrived, *state.paths[lane + 1 :])
    loss = state.loss + offer.loss * chunk.tokens
    if executor.decoding_competes and not serial:
        return _State(paths, state.there, max(state.engine, arrived) + offer.decode_seconds, loss, False)
    return _State(paths, max(state.there, arrived) + offer.decode_seconds, state.engine, loss, False)


def _undominated(states: list[_State]) -> list[_State]:
    kept: list[_State] = []
    for flag in (False, True):
        group = sorted((state for state in states if state.computing is flag), key=_State.costs)
        best: list[_State] = []
        table = np.empty((0, len(group[0].costs()) if group else 0))
        for state in group:
            costs = np.array(state.costs())
            if len(table) and bool((table <= costs).all(axis=1).any()):
                continue
            best.append(state)
            table = np.vstack((table, costs))
        kept.extend(best)
    return kept


def fastest(outcomes: list[Outcome], loss_max: float) -> float:
    """The lowest time to first token that loses at most ``loss_max``."""
    return min(outcome.seconds for outcome in outcomes if outcome.loss <= loss_max)


def best_within(outcomes: list[Outcome], seconds_max: float) -> float | None:
    """The least loss within a time, or ``None`` where nothing is."""
    return min((outcome.loss for outcome in outcomes if outcome.seconds <= seconds_max), default=None)


def replay(plan: Plan, chunks: list[Chunk], outlook: Outlook, executor: Executor) -> float:
    """When the last chunk is there, if everything takes what ``outlook`` says and decoding takes nothing.

    Loads come in the plan's order; the engine computes what is not loaded as soon as all before it is there.
    """
    offered = {offer.link for chunk in chunks for offer in chunk.offers}
    busy: dict[str, float] = {}
    arrived = [0.0] * len(chunks)
    loaded = [index for index in plan.load_order.tolist() if plan.actions[index] == Action.LOAD]
    for index in loaded:
        way = plan[index].way
        cost = outlook.links[way.link]
        name = cost.path or way.link
        size = next(o.size_bytes for o in chunks[index].offers if (o.link, o.level) == (way.link, way.level))
        first = max(
            outlook.links[link].wait_seconds + outlook.links[link].latency_seconds
            for link in offered
            if (outlook.links[link].path or link) == name
        )
        busy[name] = busy.get(name, first) + size * cost.byte_seconds
        arrived[index] = busy[name]
    serial = executor.ability is Ability.PREFIX_CUT or not executor.side_by_side
    engine = outlook.prefill.wait_seconds
    if serial and loaded:
        engine = max(engine, *(arrived[index] for index in loaded))
    there, computing = 0.0, False
    for index, chunk in enumerate(chunks):
        if plan.actions[index] == Action.LOAD:
            there, computing = max(there, arrived[index]), False
            continue
        state = _State((), 0.0, max(engine, there), 0.0, computing)
        engine = _computed(state, chunk, outlook, executor, serial).engine
        there, computing = max(there, engine), True
    return max(there, engine)
