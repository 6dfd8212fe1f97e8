"""From a width to the workers themselves: which stay, which leave, where new ones go, and who hosts which expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.domain.cluster import Lease
from scheduler.domain.jobs import ExpertId, Job, ModelShape, Role, RoleNeed, WorkerSlot
from scheduler.planning.balance import Hosts, balance, expected_loads
from scheduler.planning.claims import Claim
from scheduler.planning.experts import Floats, assign_owners
from scheduler.planning.fit import expert_slots, worker_bytes
from scheduler.planning.lasting import Lasting
from scheduler.planning.placement import Ground, choose_leavers, choose_spots
from scheduler.planning.stock import SERVING_FOR_S, Stock
from scheduler.planning.view import Spot, Standing

SPARE = 4
"""Once a model's loads are measured, one further copy for so many experts goes where the load is."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The workers that a job is to have (None if it is below minimum), and which spots the new ones took."""

    slots: tuple[WorkerSlot, ...] | None
    taken: tuple[Spot, ...] = ()


def role_targets(needs: Sequence[RoleNeed], floors: Mapping[Role, int], width: int) -> dict[Role, int]:
    """Workers of each role: its floor, and the rest to whichever role is furthest from its maximum.

    Counts only grow with `width`.
    """
    if len(needs) == 1:
        return {needs[0].role: max(floors[needs[0].role], min(width, needs[0].max))}
    targets = {need.role: floors[need.role] for need in needs}
    for _ in range(width - sum(targets.values())):
        open_needs = [need for need in needs if targets[need.role] < need.max]
        if not open_needs:
            break
        need = min(open_needs, key=lambda n: ((targets[n.role] - n.min) / (n.max - n.min), n.role is not Role.SHARD))
        targets[need.role] += 1
    return targets


def count_leavers(claim: Claim) -> int:
    """How many staying workers the job gives up at its new width."""
    targets = role_targets(claim.standing.job.needs, claim.floors, claim.width)
    return sum(max(0, len(claim.standing.staying_as(role)) - target) for role, target in targets.items())


def leavers_of(claim: Claim, ground: Ground) -> tuple[WorkerSlot, ...]:
    """Staying workers that the job gives up at its new width."""
    targets = role_targets(claim.standing.job.needs, claim.floors, claim.width)
    leavers: list[WorkerSlot] = []
    for role, target in targets.items():
        staying = claim.standing.staying_as(role)
        if len(staying) > target:
            leavers += choose_leavers(role, len(staying) - target, staying, ground)
    return tuple(leavers)


def shape(claim: Claim, stock: Stock, expected: int, ground: Ground) -> Shape:
    """The job's workers, new ones on spots that are taken from the stock.

    `expected` devices will be free soon: workers on draining leases are held for them where the job would else be
    below its minimum.
    """
    job, standing = claim.standing.job, claim.standing
    targets = role_targets(job.needs, claim.floors, claim.width)
    if job.assignment and not standing.is_forced and _is_as_it_was(standing, targets):
        return Shape(job.assignment.workers)
    leavers = set(leavers_of(claim, ground))
    slots = [slot for slot in standing.staying if slot not in leavers]
    taken: list[Spot] = []
    for role, target in targets.items():
        have = sum(slot.role is role for slot in slots)
        spots: tuple[Spot, ...] = ()
        if target > have:
            large_enough = stock.fitting(worker_bytes(job.shape, role, target))
            spots = choose_spots(role, target - have, large_enough, slots, ground, job.copies)
            stock.take(spots)
        slots += _new_slots(job, role, spots, len(taken))
        taken += spots
        missing = claim.floors[role] - have - len(spots)
        if missing > 0:
            held = standing.leaving_as(role)[:missing]
            if len(held) < missing or expected < missing:
                stock.give_back(taken)
                return Shape(None)
            slots, expected = [*slots, *held], expected - missing
    return Shape(host_experts(job, slots, ground), tuple(taken))


def _is_as_it_was(standing: Standing, targets: Mapping[Role, int]) -> bool:
    """Whether the job's workers, all of whom stay, are as many of each role as it is to have."""
    return len(standing.staying) == sum(targets.values()) and all(
        len(standing.staying_as(role)) == target for role, target in targets.items()
    )


def move(claim: Claim, stock: Stock, ground: Ground) -> Shape | None:
    """All of the job's workers anew on spots of another pool; None if they do not all fit there now."""
    if len(stock) < claim.width:
        return None
    arriving = replace(claim.standing, staying=(), leaving=(), lost=())
    shaped = shape(replace(claim, standing=arriving), stock, 0, ground)
    if len(shaped.taken) == claim.width:
        return shaped
    stock.give_back(shaped.taken)
    return None


def _new_slots(job: Job, role: Role, spots: Sequence[Spot], first: int) -> list[WorkerSlot]:
    revision = job.assignment_revision + 1
    return [
        WorkerSlot(f"{job.id}-{role}-{revision}-{number}", role, spot.lease.key, (spot.device.id,))
        for number, spot in enumerate(spots, start=first)
    ]


# --- experts ---------------------------------------------------------------------------------------------------


def host_experts(job: Job, slots: Sequence[WorkerSlot], ground: Ground) -> tuple[WorkerSlot, ...]:
    """The slots, sorted by worker, with the job's experts shared out over its trainers and shards."""
    hosted = {slot.worker: slot for slot in slots}
    trainers = [slot for slot in slots if slot.role is Role.TRAINER]
    shards = [slot for slot in slots if slot.role is Role.SHARD]
    if job.shape and trainers:
        hosted.update((slot.worker, slot) for slot in _owned(job.shape, trainers))
    if job.shape and shards:
        hosted.update((slot.worker, slot) for slot in _copied(job, job.shape, shards, ground))
    return tuple(hosted[worker] for worker in sorted(hosted))


def _pairs(model: ModelShape) -> list[ExpertId]:
    return [(layer, expert) for layer in range(model.layers) for expert in range(model.experts)]


def _owned(model: ModelShape, trainers: Sequence[WorkerSlot]) -> list[WorkerSlot]:
    pairs = _pairs(model)
    owner_now = {pair: index for index, slot in enumerate(trainers) for pair in slot.experts}
    present_P = np.array([owner_now.get(pair, -1) for pair in pairs], dtype=np.int64)
    owner_P = assign_owners(present_P, len(trainers))
    owned: list[list[ExpertId]] = [[] for _ in trainers]
    for pair, owner in zip(pairs, owner_P.tolist(), strict=True):
        owned[owner].append(pair)
    return [replace(slot, experts=tuple(mine)) for slot, mine in zip(trainers, owned, strict=True)]


def _copied(job: Job, model: ModelShape, shards: Sequence[WorkerSlot], ground: Ground) -> list[WorkerSlot]:
    present_LEW = np.zeros((model.layers, model.experts, len(shards)), dtype=np.bool_)
    for column, slot in enumerate(shards):
        for layer, expert in slot.experts:
            present_LEW[layer, expert, column] = True
    leases = [ground.leases[slot.lease] for slot in shards]
    hosts = Hosts(
        np.array([expert_slots(model, _memory_bytes(*pair)) for pair in zip(shards, leases, strict=True)]),
        _shares(job, leases, ground.lasting),
        _numbered([slot.lease.node for slot in shards]),
        _numbered([lease.cohort for lease in leases]),
    )
    pairs = model.layers * model.experts
    tokens = ground.expert_loads.get(job.id)
    load_LE = expected_loads(np.reshape(tokens or np.zeros(pairs), (model.layers, model.experts)))
    copies = job.copies * pairs + (pairs // SPARE if np.ptp(load_LE) > 0 else 0)
    host_LEW = balance(load_LE, hosts, present_LEW, floor=job.copies, copies=copies)
    return [
        replace(slot, experts=tuple((layer, expert) for layer, expert in np.argwhere(host_LEW[:, :, column]).tolist()))
        for column, slot in enumerate(shards)
    ]


def _shares(job: Job, leases: Sequence[Lease], lasting: Lasting) -> Floats:
    """How much of the model each shard's node is to host, against the others [W].

    What goes is to be loaded anew elsewhere, so little lies where it would soon go. The only copy of a model is spread
    evenly, that each node does its part of the work. The more copies there are, the more of the work others can do, and
    the less is spread evenly: of two copies a quarter, and the rest by how likely nodes are to last.
    """
    chance_W = np.array([lasting.chance(lease, SERVING_FOR_S) for lease in leases])
    even = 1.0 / job.copies
    share_W: Floats = even + (job.copies - even) * chance_W / max(float(chance_W.mean()), 1e-9)
    return share_W


def _memory_bytes(slot: WorkerSlot, lease: Lease) -> int:
    return next(device.memory_bytes for device in lease.devices if device.id in slot.devices)


def _numbered(names: Sequence[str]) -> np.typing.NDArray[np.int64]:
    order = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([order[name] for name in names], dtype=np.int64)
