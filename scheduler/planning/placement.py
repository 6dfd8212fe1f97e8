"""On which devices a job's new workers go, and which of its workers go first. Workers that stay never move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from scheduler.domain.cluster import Lease, LeaseKey
from scheduler.domain.jobs import Role, WorkerSlot
from scheduler.planning.lasting import Lasting
from scheduler.planning.stock import SERVING_FOR_S, TRAINING_FOR_S, Stock
from scheduler.planning.view import Place, Spot, place_of

APART = (Role.ENGINE, Role.SHARD)
"""Roles whose workers stand in for each other, and so must not be lost together."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What is known of the leases, and of how many tokens each expert of a served model got."""

    leases: Mapping[LeaseKey, Lease]
    lasting: Lasting = field(default_factory=Lasting)
    expert_loads: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def choose_spots(
    role: Role, count: int, stock: Stock, mates: Sequence[WorkerSlot], ground: Ground, copies: int = 1
) -> tuple[Spot, ...]:
    """At most `count` of the free spots for new workers of a role, beside the job's other workers `mates`.

    `copies`: how many workers of the role stand in for each other.
    """
    if role in APART:
        return _apart(role, count, stock, mates, ground, copies)
    cohorts = {ground.leases[slot.lease].cohort for slot in mates if slot.lease in ground.leases}
    return tuple(islice(stock.together((slot.lease for slot in mates), cohorts), count))


def choose_leavers(role: Role, count: int, slots: Sequence[WorkerSlot], ground: Ground) -> tuple[WorkerSlot, ...]:
    """The `count` workers of a role that a shrinking job misses least.

    Of stand-ins one that has a neighbour, of others a lonely one; then the least likely to last, the youngest.
    """
    cohort_of = {slot.worker: ground.leases[slot.lease].cohort for slot in slots}
    nodes, cohorts = Counter(slot.lease.node for slot in slots), Counter(cohort_of.values())
    sign = -1 if role in APART else 1
    frailty = {slot.worker: _frailty(role, slot, ground) for slot in slots} if count else {}

    def rank(slot: WorkerSlot) -> tuple[int, int, tuple[float, list[int]]]:
        return sign * nodes[slot.lease.node], sign * cohorts[cohort_of[slot.worker]], frailty[slot.worker]

    left = list(slots)
    leavers: list[WorkerSlot] = []
    for _ in range(count):
        leaver = min(left, key=rank)
        left.remove(leaver)
        leavers.append(leaver)
        nodes[leaver.lease.node] -= 1
        cohorts[cohort_of[leaver.worker]] -= 1
    return tuple(leavers)


def _frailty(role: Role, slot: WorkerSlot, ground: Ground) -> tuple[float, list[int]]:
    """Sorts the least likely to last first, then the youngest."""
    lease, lasting = ground.leases[slot.lease], ground.lasting
    chance = lasting.chance(lease, SERVING_FOR_S) if role in APART else lasting.chance_by_age(lease, TRAINING_FOR_S)
    return chance, [-ord(letter) for letter in slot.worker]


def _apart(
    role: Role, count: int, stock: Stock, mates: Sequence[WorkerSlot], ground: Ground, copies: int
) -> tuple[Spot, ...]:
    """Different nodes, no cohort with more than its share of the stand-ins; then the nodes that last."""
    same = [slot.lease for slot in mates if slot.role is role]
    leases = ground.leases
    nodes, cohorts = Counter(key.node for key in same), Counter(leases[key].cohort for key in same if key in leases)
    others = Counter(slot.lease.node for slot in mates)
    share = max(1, (len(same) + count) // (2 * copies))

    def rank(spot: Spot) -> tuple[int, int, int, float, int, Place]:
        node, cohort = spot.lease.key.node, spot.lease.cohort
        over = max(0, cohorts[cohort] + 1 - share)
        return nodes[node], over, others[node], -stock.chance(spot), cohorts[cohort], place_of(spot)

    chosen: dict[Place, Spot] = {}
    while len(chosen) < count:
        open_spots = (spot for spot in stock.apart(others, cohorts) if place_of(spot) not in chosen)
        best = min(open_spots, key=rank, default=None)
        if best is None:
            break
        chosen[place_of(best)] = best
        nodes[best.lease.key.node] += 1
        cohorts[best.lease.cohort] += 1
        others[best.lease.key.node] += 1
    return tuple(chosen.values())
