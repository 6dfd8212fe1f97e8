"""Which worker hosts which (layer, expert) pair. Pure functions on arrays; ties break by the lowest index.

Dimensions: P pairs, W workers. `present_P` and `present_PW` say where pairs are now; what can stay, stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def even_shares(total: int, speed_W: Floats, held_W: Ints, most: int) -> Ints:
    """`total` places shared out in proportion to speed [W], none over `most`; who holds much is rounded up first."""
    share_W: Ints = np.minimum(np.floor(total * speed_W / speed_W.sum()).astype(np.int64), most)
    order = np.lexsort((np.arange(len(share_W)), -held_W))
    while (rest := total - int(share_W.sum())) > 0:
        room = [w for w in order if share_W[w] < most]
        if not room:
            break
        share_W[room[:rest]] += 1
    return share_W


def assign_owners(present_P: Ints, workers: int, speed_W: Floats | None = None) -> Ints:
    """One owner for each pair [P], evenly by speed, moving as few pairs as possible.

    `present_P` is the worker that owns a pair now, -1 without one. Shares may be uneven by one, or by speed.
    """
    held_W = np.bincount(present_P[present_P >= 0], minlength=workers)
    share_W = even_shares(len(present_P), np.ones(workers) if speed_W is None else speed_W, held_W, len(present_P))
    owner_P = present_P.copy()
    for worker in range(workers):
        surplus = np.flatnonzero(owner_P == worker)[share_W[worker] :]
        owner_P[surplus] = -1
    room_W = share_W - np.bincount(owner_P[owner_P >= 0], minlength=workers)
    owner_P[owner_P < 0] = np.repeat(np.arange(workers), room_W)
    return owner_P


def assign_copies(
    present_PW: Bools,
    node_W: Ints,
    cohort_W: Ints,
    copies: int,
    slots: int | None = None,
    speed_W: Floats | None = None,
) -> Bools:
    """`copies` workers for each pair [P, W], no two on one node, nor in one cohort while there is another.

    Fewer copies where there are fewer nodes, or where `slots`, the most pairs that a worker can hold, do not suffice;
    then every pair gets its first copy before any gets a second. Present copies stay where shares allow it. A new copy
    goes where room is, and among those to the worker that already shares most pairs with the first: few different
    replica sets outlive more simultaneous deaths than many.
    """
    pairs, workers = present_PW.shape
    most = pairs if slots is None else min(slots, pairs)
    copies = min(copies, len(np.unique(node_W)))
    total = min(pairs * copies, most * workers)
    speed_W = np.ones(workers) if speed_W is None else speed_W
    share_W = even_shares(total, speed_W, present_PW.sum(axis=0), most)
    host_PW = _kept(present_PW, node_W, copies, share_W)
    _cover(host_PW, most)
    together_WW = host_PW.T.astype(np.int64) @ host_PW.astype(np.int64)  # pairs that two workers both host
    for count in range(1, copies + 1):
        for pair in np.flatnonzero(host_PW.sum(axis=1) < count):
            hosts = np.flatnonzero(host_PW[pair])
            worker = _next_host(hosts, together_WW, node_W, cohort_W, share_W, most)
            if worker is not None:
                host_PW[pair, worker] = True
                together_WW[worker, hosts] += 1
                together_WW[hosts, worker] += 1
                together_WW[worker, worker] += 1
    if _is_whole(present_PW, node_W, cohort_W, copies, most) and not _relieves(present_PW, host_PW, speed_W):
        return present_PW.copy()
    return host_PW


def _is_whole(host_PW: Bools, node_W: Ints, cohort_W: Ints, copies: int, most: int) -> bool:
    """Whether every pair has its copies, as far apart as can be, and no worker hosts more than `most`."""
    cohorts = min(copies, len(np.unique(cohort_W)))
    return bool(
        (host_PW.sum(axis=1) == copies).all()
        and (host_PW.sum(axis=0) <= most).all()
        and (_distinct(host_PW, node_W) == copies).all()
        and (_distinct(host_PW, cohort_W) >= cohorts).all()
    )


def _relieves(present_PW: Bools, host_PW: Bools, speed_W: Floats) -> bool:
    """Whether the busiest worker would be rid of more than a pair and a fifth of its load: less is not worth it."""
    present_load, load = ((hosts.sum(axis=0) / speed_W).max() for hosts in (present_PW, host_PW))
    return bool(present_load > load + 1.0 / speed_W.min() and present_load > 1.25 * load)


def _distinct(host_PW: Bools, group_W: Ints) -> Ints:
    """In how many groups of workers each pair is hosted [P]."""
    in_group_GW = np.unique(group_W)[:, None] == group_W
    return np.asarray((host_PW.astype(np.int64) @ in_group_GW.T.astype(np.int64) > 0).sum(axis=1))


def _kept(present_PW: Bools, node_W: Ints, copies: int, share_W: Ints) -> Bools:
    """Present copies, at most `copies` of a pair on different nodes, at most each worker's share."""
    host_PW = np.zeros_like(present_PW)
    for pair in range(len(present_PW)):
        nodes: set[int] = set()
        for worker in np.flatnonzero(present_PW[pair]):
            node = int(node_W[worker])
            if node not in nodes and len(nodes) < copies and host_PW[:, worker].sum() < share_W[worker]:
                host_PW[pair, worker] = True
                nodes.add(node)
    return host_PW


def _cover(host_PW: Bools, most: int) -> None:
    """Where second copies fill the places that a pair without any needs, they make room for it."""
    missing = int((~host_PW.any(axis=1)).sum()) - int((most - host_PW.sum(axis=0)).sum())
    for pair in np.flatnonzero(host_PW.sum(axis=1) > 1)[: max(0, missing)]:
        host_PW[pair, np.flatnonzero(host_PW[pair])[-1]] = False


def _next_host(hosts: Ints, together_WW: Ints, node_W: Ints, cohort_W: Ints, share_W: Ints, most: int) -> int | None:
    """Where the next copy of a pair that `hosts` host goes; None if nobody else can take it."""
    load_W = together_WW.diagonal()
    allowed = load_W < most
    if len(hosts):
        allowed &= ~(node_W[:, None] == node_W[hosts]).any(axis=1)
    candidates = np.flatnonzero(allowed)
    if not len(candidates):
        return None
    load_C, share_C = load_W[candidates], share_W[candidates]
    order = np.lexsort(
        (
            candidates,
            load_C / np.maximum(share_C, 1),
            -together_WW[np.ix_(candidates, hosts)].sum(axis=1),
            load_C >= share_C,
            (cohort_W[candidates, None] == cohort_W[hosts]).any(axis=1),
        )
    )
    return int(candidates[order[0]])
