"""Membership of a training job: generations of members, and the orders that lead from one to the next.

A generation is the list of workers that train together, in rank order, each owning some experts. A switch leads to
the next one at a step boundary: state moves between its participants (old and new members), then the new members
go on. Everything here is plain data and pure functions; controllers make switches, workers carry them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runtime.site.controller import ExpertId, WorkerSlot

Item = ExpertId | Literal["dense"]
"""What moves as one piece: an expert's state, or the state of all dense parameters, which every member holds."""

DENSE: Literal["dense"] = "dense"


@dataclass(frozen=True, slots=True)
class Member:
    """A worker of a generation: owns `slot.experts`, and sends copies of them to `buddy` ("" if it is alone)."""

    slot: WorkerSlot
    buddy: str = ""
    speed: float = 1.0  # as far as it is known; its share of the batch goes by it until it is measured

    @property
    def worker(self) -> str:
        """Its id."""
        return self.slot.worker


@dataclass(frozen=True, slots=True)
class Generation:
    """Who trains together. `number` only grows; `members` are in rank order."""

    number: int
    members: tuple[Member, ...]

    @property
    def workers(self) -> tuple[str, ...]:
        """Worker ids in rank order."""
        return tuple(m.worker for m in self.members)

    def member(self, worker: str) -> Member:
        """Raises KeyError for a worker that is not in it."""
        for member in self.members:
            if member.worker == worker:
                return member
        raise KeyError(worker)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a generation's state comes from.

    "fresh": first values. "live": what members hold now. "snapshot": the copy in memory that was taken by generation
    `generation` at `step`. "checkpoint": the folder `path`, which every member reads for itself.
    """

    kind: Literal["fresh", "live", "snapshot", "checkpoint"]
    step: int = 0
    generation: int = 0
    path: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """One item that `giver` sends to `taker`."""

    item: Item
    giver: str
    taker: str


@dataclass(frozen=True, slots=True)
class Switch:
    """The order to become `generation`. Idempotent by its number; participants are in rank order of their group."""

    generation: Generation
    participants: tuple[str, ...]
    store: tuple[str, int]  # address and port of the rendezvous, held by one of the participants
    source: Source
    moves: tuple[Move, ...] = ()
    then: Literal["train", "park"] = "train"  # park: write a checkpoint and wait
    cause: str = ""

    @property
    def number(self) -> int:
        """The number of the generation that it leads to."""
        return self.generation.number


@dataclass(frozen=True, slots=True)
class Holding:
    """Complete state that a worker has in memory, and of which items. `kind` is "live" or "snapshot"."""

    kind: Literal["live", "snapshot"]
    step: int
    generation: int
    items: frozenset[Item]


def form(number: int, slots: Iterable[WorkerSlot], speeds: Mapping[str, float] | None = None) -> Generation:
    """A generation of these workers, ranked by id, with buddies. Whose speed is not known has the usual one, 1."""
    ordered, known = sorted(slots, key=lambda slot: slot.worker), speeds or {}
    return Generation(
        number,
        tuple(Member(slot, _buddy(ordered, rank), known.get(slot.worker, 1.0)) for rank, slot in enumerate(ordered)),
    )


def _buddy(slots: Sequence[WorkerSlot], rank: int) -> str:
    """The next worker round the ring that is likely to survive this one: of another cohort, else on another node."""
    me = slots[rank]
    others = [slots[(rank + i) % len(slots)] for i in range(1, len(slots))]
    for better in (lambda o: o.cohort != me.cohort, lambda o: o.lease != me.lease, lambda o: True):
        for other in others:
            if better(other):
                return other.worker
    return ""


def redivide(survivors: Sequence[WorkerSlot], experts: Iterable[ExpertId]) -> tuple[WorkerSlot, ...]:
    """Every expert on exactly one survivor: kept where it is, else on the one with the fewest (ties: by id)."""
    wanted = set(experts)
    owned: dict[str, list[ExpertId]] = {slot.worker: [] for slot in survivors}
    for slot in sorted(survivors, key=lambda s: s.worker):
        for key in slot.experts:
            if key in wanted:
                owned[slot.worker].append(key)
                wanted.discard(key)
    for key in sorted(wanted):
        poorest = min(owned, key=lambda worker: (len(owned[worker]), worker))
        owned[poorest].append(key)
    return tuple(with_experts(slot, sorted(owned[slot.worker])) for slot in survivors)


def with_experts(slot: WorkerSlot, experts: Sequence[ExpertId]) -> WorkerSlot:
    """The same worker with other experts."""
    return WorkerSlot(
        slot.worker, slot.role, slot.lease, slot.devices, tuple(experts), address=slot.address, cohort=slot.cohort
    )


def newest_complete(
    holdings: Mapping[str, Sequence[Holding]], items: Iterable[Item]
) -> tuple[Source, dict[Item, tuple[str, ...]]] | None:
    """The newest state of which the workers together hold every item, and who holds what; None if there is none.

    Later steps are better; at the same step a later generation's, and live state before a snapshot.
    """
    found: dict[tuple[int, int, bool], dict[Item, list[str]]] = {}
    for worker in sorted(holdings):
        for held in holdings[worker]:
            holders = found.setdefault((held.step, held.generation, held.kind == "live"), {})
            for item in held.items:
                holders.setdefault(item, []).append(worker)
    wanted = set(items)
    for (step, generation, is_live), holders in sorted(found.items(), key=lambda entry: entry[0], reverse=True):
        if wanted <= holders.keys():
            source = Source("live" if is_live else "snapshot", step, generation)
            return source, {item: tuple(holders[item]) for item in wanted}
    return None


def plan_moves(target: Generation, holders: Mapping[Item, Sequence[str]]) -> tuple[Move, ...]:
    """What must be sent so that every member has dense state and its own experts; work is spread over the holders."""
    sent: dict[str, int] = {}
    moves: list[Move] = []
    wanted = [(item, m.worker) for m in target.members for item in (DENSE, *sorted(m.slot.experts))]
    for item, taker in wanted:
        if taker in holders[item]:
            continue
        giver = min(holders[item], key=lambda worker: (sent.get(worker, 0), worker))
        sent[giver] = sent.get(giver, 0) + 1
        moves.append(Move(item, giver, taker))
    return tuple(moves)


def participants(target: Generation, moves: Iterable[Move], present: Iterable[str]) -> tuple[str, ...]:
    """Everyone that a switch concerns: new members first in their rank order, then givers and `present` members."""
    others = {move.giver for move in moves} | set(present)
    return (*target.workers, *sorted(others - set(target.workers)))
