"""On which devices a job's new workers go, and which of its workers go first. Workers that stay never move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.domain.cluster import Lease, LeaseKey
from scheduler.domain.jobs import Role, WorkerSlot
from scheduler.planning.lasting import Lasting
from scheduler.planning.view import Spot

APART = (Role.ENGINE, Role.SHARD)
"""Roles whose workers stand in for each other, and so must not be lost together."""

TRAINING_FOR_S = 900.0
SERVING_FOR_S = 3600.0
"""A node is the better, the likelier it lasts so long."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What is known of the leases, and of how many tokens each expert of a served model got."""

    leases: Mapping[LeaseKey, Lease]
    lasting: Lasting = field(default_factory=Lasting)
    expert_loads: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def choose_spots(
    role: Role, count: int, free: Sequence[Spot], mates: Sequence[WorkerSlot], ground: Ground, copies: int = 1
) -> tuple[Spot, ...]:
    """At most `count` of the free spots for new workers of a role, beside the job's other workers `mates`.

    `copies`: how many workers of the role stand in for each other.
    """
    if role in APART:
        return _apart(role, count, free, mates, ground, copies)
    return _together(count, free, mates, ground)


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
    return ground.lasting.chance(ground.leases[slot.lease], _for_s(role)), [-ord(letter) for letter in slot.worker]


def _for_s(role: Role) -> float:
    return SERVING_FOR_S if role in APART else TRAINING_FOR_S


def _together(count: int, free: Sequence[Spot], mates: Sequence[WorkerSlot], ground: Ground) -> tuple[Spot, ...]:
    """Few cohorts: those that the job is in already, then the one that is likeliest to last, the largest of equals."""
    home_cohorts = {ground.leases[slot.lease].cohort for slot in mates if slot.lease in ground.leases}
    home_leases = {slot.lease for slot in mates}
    by_cohort = _by_cohort(free)

    def rank(cohort: str) -> tuple[bool, float, int, str]:
        spots = by_cohort[cohort]
        chance = ground.lasting.chance(spots[0].lease, TRAINING_FOR_S)
        return cohort not in home_cohorts, -chance, -len(spots), cohort

    chosen: list[Spot] = []
    for cohort in sorted(by_cohort, key=rank):
        missing = count - len(chosen)
        if missing <= 0:
            break
        chosen += _best_of(by_cohort[cohort], missing, home_leases, ground)
    return tuple(chosen)


def _best_of(spots: list[Spot], count: int, home_leases: set[LeaseKey], ground: Ground) -> list[Spot]:
    """Of one cohort: leases that the job is on already, then what lasts, then whole nodes."""
    sizes = Counter(spot.lease.key for spot in spots)

    def rank(spot: Spot) -> tuple[bool, float, int, tuple[LeaseKey, str]]:
        chance = ground.lasting.chance(spot.lease, TRAINING_FOR_S)
        return spot.lease.key not in home_leases, -chance, -sizes[spot.lease.key], spot.id

    return sorted(spots, key=rank)[:count]


def _by_cohort(spots: Iterable[Spot]) -> dict[str, list[Spot]]:
    by_cohort: dict[str, list[Spot]] = {}
    for spot in spots:
        by_cohort.setdefault(spot.lease.cohort, []).append(spot)
    return by_cohort


def _apart(
    role: Role, count: int, free: Sequence[Spot], mates: Sequence[WorkerSlot], ground: Ground, copies: int
) -> tuple[Spot, ...]:
    """Different nodes, no cohort with more than its share of the stand-ins; then the nodes that last."""
    same = [slot.lease for slot in mates if slot.role is role]
    leases = ground.leases
    nodes, cohorts = Counter(key.node for key in same), Counter(leases[key].cohort for key in same if key in leases)
    others = Counter(slot.lease.node for slot in mates)
    share = max(1, (len(same) + count) // (2 * copies))
    chances = {spot.id: round(ground.lasting.chance(spot.lease, SERVING_FOR_S), 3) for spot in free}
    left = sorted(free, key=lambda s: (-chances[s.id], s.id))
    chosen: list[Spot] = []
    while left and len(chosen) < count:
        spot = min(
            left,
            key=lambda s: (
                nodes[s.lease.key.node],
                _over(cohorts[s.lease.cohort], share),
                others[s.lease.key.node],
                -chances[s.id],
                cohorts[s.lease.cohort],
                s.id,
            ),
        )
        left.remove(spot)
        chosen.append(spot)
        nodes[spot.lease.key.node] += 1
        cohorts[spot.lease.cohort] += 1
        others[spot.lease.key.node] += 1
    return tuple(chosen)


def _over(count: int, share: int) -> int:
    return max(0, count + 1 - share)
