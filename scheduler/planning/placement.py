"""On which devices a job's new workers go, and which of its workers go first. Workers that stay never move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from scheduler.domain.cluster import Lease, LeaseKey
from scheduler.domain.jobs import Role, WorkerSlot
from scheduler.planning.view import Spot

FOREVER_S = float("inf")
APART = (Role.ENGINE, Role.SHARD)
"""Roles whose workers stand in for each other, and so must not be lost together."""


def choose_spots(
    role: Role, count: int, free: Sequence[Spot], mates: Sequence[WorkerSlot], leases: Mapping[LeaseKey, Lease]
) -> tuple[Spot, ...]:
    """At most `count` of the free spots for new workers of a role, beside the job's other workers `mates`."""
    if role in APART:
        return _apart(role, count, free, mates, leases)
    return _together(count, free, mates, leases)


def choose_leavers(
    role: Role, count: int, slots: Sequence[WorkerSlot], leases: Mapping[LeaseKey, Lease]
) -> tuple[WorkerSlot, ...]:
    """The `count` workers of a role that a shrinking job misses least."""
    left = list(slots)
    leavers: list[WorkerSlot] = []
    for _ in range(count):
        leavers.append(_missed_least(role, left, leases))
        left.remove(leavers[-1])
    return tuple(leavers)


def _missed_least(role: Role, slots: Sequence[WorkerSlot], leases: Mapping[LeaseKey, Lease]) -> WorkerSlot:
    """Of stand-ins one that has a neighbour, of others a lonely one; then the one that ends first, the youngest."""
    nodes = Counter(slot.lease.node for slot in slots)
    cohorts = Counter(leases[slot.lease].cohort for slot in slots)
    sign = -1 if role in APART else 1

    def rank(slot: WorkerSlot) -> tuple[int, int, float, list[int]]:
        lease = leases[slot.lease]
        youth = [-ord(letter) for letter in slot.worker]
        return sign * nodes[slot.lease.node], sign * cohorts[lease.cohort], _end_s(lease), youth

    return min(slots, key=rank)


def _end_s(lease: Lease) -> float:
    return FOREVER_S if lease.expected_end_s is None else lease.expected_end_s


def _together(
    count: int, free: Sequence[Spot], mates: Sequence[WorkerSlot], leases: Mapping[LeaseKey, Lease]
) -> tuple[Spot, ...]:
    """Few cohorts: those that the job is in already, then the smallest that is large enough, else the largest."""
    home_cohorts = {leases[slot.lease].cohort for slot in mates if slot.lease in leases}
    home_leases = {slot.lease for slot in mates}
    by_cohort = _by_cohort(free)
    chosen: list[Spot] = []
    while by_cohort and len(chosen) < count:
        missing = count - len(chosen)
        cohort = min(by_cohort, key=lambda c: _cohort_rank(c, len(by_cohort[c]), missing, c in home_cohorts))
        spots = by_cohort.pop(cohort)
        sizes = Counter(spot.lease.key for spot in spots)
        spots.sort(key=lambda s: (s.lease.key not in home_leases, -_end_s(s.lease), -sizes[s.lease.key], s.id))
        chosen += spots[:missing]
    return tuple(chosen)


def _cohort_rank(cohort: str, size: int, missing: int, is_home: bool) -> tuple[bool, bool, int, str]:
    enough = size >= missing
    return not is_home, not enough, size if enough else -size, cohort


def _by_cohort(spots: Iterable[Spot]) -> dict[str, list[Spot]]:
    by_cohort: dict[str, list[Spot]] = {}
    for spot in spots:
        by_cohort.setdefault(spot.lease.cohort, []).append(spot)
    return by_cohort


def _apart(
    role: Role, count: int, free: Sequence[Spot], mates: Sequence[WorkerSlot], leases: Mapping[LeaseKey, Lease]
) -> tuple[Spot, ...]:
    """Different nodes, then different cohorts, from workers of the same role first; then the nodes that last."""
    same = [slot.lease for slot in mates if slot.role is role]
    nodes, cohorts = Counter(key.node for key in same), Counter(leases[key].cohort for key in same if key in leases)
    others = Counter(slot.lease.node for slot in mates)
    left = list(free)
    chosen: list[Spot] = []
    while left and len(chosen) < count:
        spot = min(
            left,
            key=lambda s: (
                nodes[s.lease.key.node],
                cohorts[s.lease.cohort],
                others[s.lease.key.node],
                -_end_s(s.lease),
                s.id,
            ),
        )
        left.remove(spot)
        chosen.append(spot)
        nodes[spot.lease.key.node] += 1
        cohorts[spot.lease.cohort] += 1
        others[spot.lease.key.node] += 1
    return tuple(chosen)
