"""What a training job's controller should do next: pure, from what it was told to have and what it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from runtime.site.controller import ExpertId, WorkerSlot
from runtime.training.generation import Generation, redivide, with_experts
from runtime.training.shares import spare_stragglers

SHRINK_FIRST_S = 5.0
"""So long before a leaver's deadline the job stops waiting for joiners, and shrinks."""

TOGETHER_S = 0.5
"""Who is ready to join waits no longer than this for others that are not: a switch costs less than waiting, and those
that come at the same time share one."""

LinkPhase = Literal["starting", "ready", "training", "broken", "left", "parked", "finished", "failed", "lost"]
IDLE: frozenset[LinkPhase] = frozenset(("ready", "broken", "left", "parked"))
"""Phases of a worker that waits for an order."""


@dataclass(frozen=True, slots=True)
class View:
    """Everything that a decision depends on."""

    target: tuple[WorkerSlot, ...]
    generation: Generation | None
    phases: Mapping[str, LinkPhase]
    experts: tuple[ExpertId, ...]
    min_width: int
    now_s: float = 0.0
    deadline_s: float | None = None
    ready_s: Mapping[str, float] = field(default_factory=dict)  # since when those that are ready have been so
    stragglers: Mapping[str, float] = field(default_factory=dict)  # speed of those that have long been slow

    def phase(self, worker: str) -> LinkPhase:
        """A worker that nobody knows is lost."""
        return self.phases.get(worker, "lost")


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something happens. `is_reached`: the job is what it was told to be, as far as it can."""

    is_reached: bool = False


@dataclass(frozen=True, slots=True)
class Go:
    """Switch to these workers. `is_graceful`: the present generation trains on and hands over at a boundary."""

    slots: tuple[WorkerSlot, ...]
    is_graceful: bool
    then: Literal["train", "park"]


Decision = Wait | Go


def decide(view: View) -> Decision:
    """The next thing to do while no switch is under way."""
    members = view.generation.workers if view.generation else ()
    training = [w for w in members if view.phase(w) == "training"]
    if training and len(training) == len(members):
        return _change(view)
    if training:
        return Wait()  # the others of a broken generation notice within a step
    return _begin(view)


def _change(view: View) -> Decision:
    """All is well: go over to the target once everyone who is to join is ready, or has kept others waiting."""
    assert view.generation is not None
    present = {m.worker: m.slot for m in view.generation.members}
    leavers = present.keys() - {slot.worker for slot in view.target}
    slots = _wanted(view, present)
    may_be_partial = _is_urgent(view) if leavers else _are_kept_waiting(view, present) and len(slots) >= view.min_width
    if _unsettled(view) and not may_be_partial:
        return Wait()
    if len(slots) < view.min_width:
        return Go(tuple(present.values()), True, "park") if leavers else Wait()
    if {s.worker: s.experts for s in slots} == {w: s.experts for w, s in present.items()}:
        return Wait(is_reached=not _unsettled(view))
    return Go(slots, True, "train")


def _begin(view: View) -> Decision:
    """Nobody trains: a start, a return from parking, or a recovery."""
    present = {m.worker: m.slot for m in view.generation.members} if view.generation else {}
    survivors = [slot for worker, slot in present.items() if view.phase(worker) in IDLE]
    is_broken = any(view.phase(worker) == "broken" for worker in present)
    slots = _wanted(view, present)
    if len(slots) >= view.min_width and slots:
        # survivors of a loss do not wait for joiners; a start and a return do
        return Go(slots, False, "train") if is_broken or not _unsettled(view) else Wait()
    if is_broken and survivors:
        return Go(redivide(survivors, view.experts), False, "park")
    return Wait(is_reached=not view.target)


def _wanted(view: View, present: Mapping[str, WorkerSlot]) -> tuple[WorkerSlot, ...]:
    """Who is there of the target, with every expert on one of them, and fewer on stragglers."""
    return spare_stragglers(_there(view, present), view.experts, view.stragglers)


def _there(view: View, present: Mapping[str, WorkerSlot]) -> tuple[WorkerSlot, ...]:
    """The target as it was given if all of it is there; else those who are, with the experts divided among them."""
    able = [slot for slot in view.target if view.phase(slot.worker) in IDLE | {"training"}]
    if len(able) == len(view.target):
        return view.target
    return redivide([_as_present(slot, present) for slot in able], view.experts) if able else ()


def _as_present(slot: WorkerSlot, present: Mapping[str, WorkerSlot]) -> WorkerSlot:
    experts: Sequence[ExpertId] = present[slot.worker].experts if slot.worker in present else ()
    return with_experts(slot, experts)


def _unsettled(view: View) -> list[str]:
    return [slot.worker for slot in view.target if view.phase(slot.worker) == "starting"]


def _are_kept_waiting(view: View, present: Mapping[str, WorkerSlot]) -> bool:
    joiners = [w for slot in view.target if (w := slot.worker) not in present and view.phase(w) == "ready"]
    return any(view.now_s - view.ready_s.get(worker, view.now_s) >= TOGETHER_S for worker in joiners)


def _is_urgent(view: View) -> bool:
    return view.deadline_s is not None and view.now_s >= view.deadline_s - SHRINK_FIRST_S


def all_items(layers: int, experts: int) -> tuple[ExpertId, ...]:
    """Every (layer, expert)."""
    return tuple((layer, expert) for layer in range(layers) for expert in range(experts))


def leftover(links: Iterable[str], target: Iterable[str], generation: Generation | None) -> list[str]:
    """Workers that neither the target nor the present generation needs."""
    needed = {*target, *(generation.workers if generation else ())}
    return sorted(set(links) - needed)
