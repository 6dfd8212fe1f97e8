"""What a serve job must do next to become what its assignment says. Pure: the controller acts on it.

New copies are loaded before old ones are left, and of the new ones those that nobody has before second ones. A worker
that is no longer wanted serves on until its place is taken or its deadline presses; then it leaves whether or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from runtime.serving.routing import Address, ExpertId
from runtime.site.controller import WorkerSlot

PORTION = 32
"""Second copies are loaded so many at a time: each portion is of use when it is there, and a shard that loads can be
asked for nothing else, however urgent."""

PRESS_S = 4.5
"""So long before a deadline workers leave, whether or not their places are taken: from 4 s before it on their node's
agent ends whatever runs there. Of a short notice it is the second half."""


def leave_at_s(deadline_s: float | None, now_s: float) -> float:
    """When those leave at the latest that must be gone by a deadline which is known from now on."""
    return math.inf if deadline_s is None else deadline_s - min(PRESS_S, max(0.0, deadline_s - now_s) / 2)


@dataclass(frozen=True, slots=True)
class Up:
    """A worker that answers, and the experts that it has loaded (shards)."""

    slot: WorkerSlot
    address: Address
    experts: frozenset[ExpertId] = frozenset()


@dataclass(frozen=True, slots=True)
class Rollout:
    """The next acts, in the order of the fields: what leaves is stopped only after the tables no longer name it."""

    start: tuple[WorkerSlot, ...] = ()
    load: Mapping[str, frozenset[ExpertId]] = field(default_factory=dict)
    route: Mapping[str, frozenset[ExpertId]] = field(default_factory=dict)  # shard -> experts that engines ask it for
    engines: tuple[str, ...] = ()  # those that the gateway uses
    stop: tuple[str, ...] = ()
    drop: Mapping[str, frozenset[ExpertId]] = field(default_factory=dict)
    settled: bool = False  # every wanted worker that lives is up and has its experts
    complete: bool = False  # settled, and nothing else is left


def decide(
    wanted: tuple[WorkerSlot, ...], up: Mapping[str, Up], busy: Set[str], lost: Set[str], pressed: bool
) -> Rollout:
    """The next acts. `busy`: workers that start or load now; `lost`: wanted ones that died; `pressed`: the deadline
    of those that must leave is near, or nothing is wanted at all."""
    slots = {slot.worker: slot for slot in wanted if slot.worker not in lost}
    start = tuple(slot for name, slot in sorted(slots.items()) if name not in up and name not in busy)
    load = _loads({n: frozenset(slots[n].experts) for n in sorted(slots) if n in up and n not in busy}, up)
    settled = not start and not load and not any(name in busy for name in slots)
    leavers = [name for name in sorted(up) if name not in slots]
    staying = {name: worker for name, worker in up.items() if name in slots}
    kept = [] if pressed else [n for n in leavers if not settled or _needed(up[n], staying)]
    route = _routes({**staying, **{name: up[name] for name in kept}}, slots, settled and not kept)
    engines = tuple(name for name in sorted(staying) if up[name].slot.role == "engine")
    if not engines:
        engines = tuple(name for name in kept if up[name].slot.role == "engine")
    unfinished = sorted(name for name in busy if name not in slots and name not in up and name not in lost)
    stop = (*(name for name in leavers if name not in kept), *unfinished)
    drop = {n: extra for n, e in route.items() if (extra := up[n].experts - e)} if settled and not kept else {}
    return Rollout(start, load, route, engines, stop, drop, settled, settled and not kept and not stop)


def _loads(wanted: Mapping[str, frozenset[ExpertId]], up: Mapping[str, Up]) -> dict[str, frozenset[ExpertId]]:
    """What shards load next: what nobody has, each expert by one of them; who has no part in that, some of the rest."""
    missing = {name: lacks for name, experts in wanted.items() if (lacks := experts - up[name].experts)}
    had = frozenset(expert for worker in up.values() for expert in worker.experts)
    takers: dict[ExpertId, list[str]] = {}
    for name, experts in missing.items():
        for expert in experts - had:
            takers.setdefault(expert, []).append(name)
    urgent: dict[str, set[ExpertId]] = {name: set() for name in missing}
    for expert in sorted(takers):
        urgent[min(takers[expert], key=lambda name: (len(urgent[name]), name))].add(expert)
    return {name: frozenset(urgent[name]) or _some(experts) for name, experts in missing.items()}


def _some(experts: frozenset[ExpertId]) -> frozenset[ExpertId]:
    return frozenset(sorted(experts)[:PORTION])


def _needed(leaver: Up, staying: Mapping[str, Up]) -> bool:
    """Whether nobody who stays can do what the leaver does."""
    if leaver.slot.role == "engine":
        return not any(worker.slot.role == "engine" for worker in staying.values())
    held = {expert for worker in staying.values() for expert in worker.experts}
    return not leaver.experts <= held


def _routes(workers: Mapping[str, Up], slots: Mapping[str, WorkerSlot], narrow: bool) -> dict[str, frozenset[ExpertId]]:
    """What each shard may be asked for: all that it has loaded, or (`narrow`) only what it is meant to keep."""
    shards = {name: worker for name, worker in sorted(workers.items()) if worker.slot.role == "shard"}
    if not narrow:
        return {name: worker.experts for name, worker in shards.items()}
    meant = {name: frozenset(slots[name].experts) for name in shards}
    kept = {expert for experts in meant.values() for expert in experts}
    return {name: meant[name] | (worker.experts - kept) for name, worker in shards.items()}
