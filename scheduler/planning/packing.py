# ruff: noqa: N815 - arrays carry their dimensions in fields too
"""First placement of copies: slots dealt over layers, copies over pairs, copies over hosts. For `balance.py`.

Dimensions as there: L layers, E experts of a layer, N hosts; all layers are worked on at once. A host has a pair once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

SAME_COHORT = 1e3
"""Busyness that a copy takes on rather than share a cohort with another: law comes before balance."""
NO_MATE = 0.05
"""Busyness that a copy takes on to lie on the same set of hosts as other pairs; swaps take it off again."""
TURN = 1e-6
"""Busyness by which equal hosts take turns from layer to layer."""


@dataclass(frozen=True, slots=True)
class Field:
    """How hosts relate: `speed_N`, and who shares a cohort or a team with whom [N, N], themselves included.

    A team is a set of at least `floor` hosts, in different cohorts where possible, that host the same pairs: few
    different replica sets outlive more simultaneous deaths than many.
    """

    speed_N: Floats
    same_cohort_NN: Bools
    mates_NN: Bools

    @classmethod
    def of(cls, speed_N: Floats, cohort_N: Ints, present_LEN: Bools, floor: int) -> Field:
        """Who hosts much together now stays a team."""
        host_PN = present_LEN.reshape(-1, len(speed_N)).astype(np.float32)
        same_cohort_NN = cohort_N[:, None] == cohort_N
        team_N = _teams(speed_N, same_cohort_NN, (host_PN.T @ host_PN).astype(np.int64), floor)
        return cls(speed_N, same_cohort_NN, team_N[:, None] == team_N)


def _teams(speed_N: Floats, same_cohort_NN: Bools, together_NN: Ints, size: int) -> Ints:
    """The team of each host [N]: those that host most together, else equally fast ones of different cohorts.

    `together_NN`: how many pairs two hosts both have. Hosts that are left over join the last team.
    """
    hosts = len(speed_N)
    team_N = np.full(hosts, -1)
    for team in range(hosts // size):
        alone_N = np.asarray(team_N < 0)
        crowd_N = (same_cohort_NN & alone_N).sum(axis=1)  # the largest cohorts are paired off first
        bond_N = np.where(alone_N & ~np.eye(hosts, dtype=np.bool_), together_NN, 0).max(axis=1)
        seed = _first(alone_N, -bond_N, -crowd_N, -speed_N)
        team_N[seed] = team
        for _ in range(size - 1):
            mine_N = team_N == team
            kin_N, shared_N = same_cohort_NN[:, mine_N].any(axis=1), together_NN[:, mine_N].sum(axis=1)
            mate = _first(
                np.asarray(team_N < 0), np.asarray(kin_N), -shared_N, -crowd_N, np.abs(speed_N - speed_N[seed])
            )
            team_N[mate] = team
    team_N[team_N < 0] = max(0, hosts // size - 1)
    return team_N


def _first(is_candidate_N: Bools, *keys_N: NDArray[np.generic]) -> int:
    """The candidate that comes first by the keys, then by index."""
    candidates = np.flatnonzero(is_candidate_N)
    order = np.lexsort([candidates, *(key_N[candidates] for key_N in reversed(keys_N))])
    return int(candidates[order[0]])


def deal_slots(slots_W: Ints, present_LW: Ints, experts: int) -> Ints:
    """How many pairs of each layer a worker may hold [L, W]: layers even to within one, present copies first."""
    layers = len(present_LW)
    slots_W = np.minimum(slots_W, layers * experts)
    quota_LW: Ints = np.clip(present_LW, slots_W // layers, slots_W // layers + 1)
    for worker, slots in enumerate(slots_W):
        for _ in range(int(quota_LW[:, worker].sum() - slots)):
            spare_L = quota_LW[:, worker] > slots // layers
            quota_LW[np.argmax(np.where(spare_L, quota_LW.sum(axis=1), -1)), worker] -= 1
        for _ in range(int(slots - quota_LW[:, worker].sum())):
            open_L = quota_LW[:, worker] <= slots // layers
            quota_LW[np.argmin(np.where(open_L, quota_LW.sum(axis=1), np.iinfo(np.int64).max)), worker] += 1
    while (total_L := quota_LW.sum(axis=1)).max() - total_L.min() > 1:
        most, least = np.argmax(total_L), np.argmin(total_L)
        giver = np.argmax(quota_LW[most] - quota_LW[least])
        quota_LW[most, giver] -= 1
        quota_LW[least, giver] += 1
    return np.minimum(quota_LW, experts)


def copies_wanted(load_LE: Floats, total_L: Ints, have_LE: Ints, floor: int, most: int) -> Ints:
    """Copies of each pair [L, E]: the floor, as far as the `total_L` copies go, heaviest first; then what they have;
    then, one by one, another for the pair with the heaviest copies. None gets more than `most`.
    """
    layers, experts = load_LE.shape
    level_L = np.minimum(floor, total_L // experts)
    rank_LE = np.argsort(np.argsort(-load_LE, axis=1, kind="stable"), axis=1, kind="stable")
    rest_L = np.where(level_L < floor, total_L - level_L * experts, 0)
    want_LE: Ints = level_L[:, None] + (rank_LE < rest_L[:, None])
    more_LE = np.maximum(np.minimum(have_LE, most) - want_LE, 0)
    want_LE = want_LE + np.where((want_LE + more_LE).sum(axis=1, keepdims=True) <= total_L[:, None], more_LE, 0)
    rows = np.arange(layers)
    while True:
        share_LE = np.where(want_LE < most, load_LE / np.maximum(want_LE, 1), 0.0)
        heaviest_L = share_LE.argmax(axis=1)
        grows_L = (want_LE.sum(axis=1) < total_L) & (share_LE[rows, heaviest_L] > 0)
        if not grows_L.any():
            return want_LE
        want_LE[rows[grows_L], heaviest_L[grows_L]] += 1


def fill(host_LEN: Bools, want_LE: Ints, load_LE: Floats, quota_LN: Ints, field: Field, floor: int) -> None:
    """Adds the copies that are wanted and missing, heaviest first, each to the least busy host that can take it.

    A copy that no host can take is left out.
    """
    rows = np.arange(len(load_LE))
    turn_LN = TURN * ((np.arange(quota_LN.shape[1]) - rows[:, None]) % quota_LN.shape[1])
    mean_L = np.maximum(load_LE.sum(axis=1), 1e-300) / field.speed_N.sum()
    share_LE = load_LE / np.maximum(want_LE, 1) / mean_L[:, None]
    load_LN = np.einsum("le,len->ln", share_LE, host_LEN)
    room_LN = quota_LN - host_LEN.sum(axis=1)
    cohort_NN, mates_NN = field.same_cohort_NN.astype(np.float32), field.mates_NN.astype(np.float32)
    for e_L in _queue(want_LE, host_LEN.sum(axis=2), share_LE, floor).T:
        on_LN, share_L = host_LEN[rows, e_L], share_LE[rows, e_L]
        on = on_LN.astype(np.float32)
        key_LN = (load_LN + share_L[:, None]) / field.speed_N + turn_LN + SAME_COHORT * (on @ cohort_NN > 0)
        key_LN += NO_MATE * (on_LN.any(axis=1, keepdims=True) & (on @ mates_NN == 0))
        key_LN[(room_LN <= 0) | on_LN | (e_L < 0)[:, None]] = np.inf
        host_L = key_LN.argmin(axis=1)
        ok = np.isfinite(key_LN[rows, host_L])
        placed, host = rows[ok], host_L[ok]
        host_LEN[placed, e_L[ok], host] = True
        load_LN[placed, host] += share_L[ok]
        room_LN[placed, host] -= 1


def _queue(want_LE: Ints, have_LE: Ints, share_LE: Floats, floor: int) -> Ints:
    """Experts in the order in which their missing copies are placed [L, K]; -1 after a layer's last.

    Where the floor is several copies these come first, so that none over it takes the place that keeps them apart.
    """
    first_LE = np.maximum(np.minimum(want_LE, floor if floor > 1 else 0) - have_LE, 0)
    more_LE = np.maximum(want_LE - have_LE, 0) - first_LE
    queue_LK = np.full((len(want_LE), int((first_LE + more_LE).sum(axis=1).max(initial=0))), -1)
    for layer, order_E in enumerate(np.argsort(-share_LE, axis=1, kind="stable")):
        items = np.concatenate([np.repeat(order_E, copies_LE[layer, order_E]) for copies_LE in (first_LE, more_LE)])
        queue_LK[layer, : len(items)] = items
    return queue_LK
