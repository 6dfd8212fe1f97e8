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
    _cover(host_PW, share_W, most)
    for count in range(1, copies + 1):
        for pair in np.flatnonzero(host_PW.sum(axis=1) < count):
            _add_copy(host_PW, int(pair), node_W, cohort_W, share_W, most)
    return host_PW


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


def _cover(host_PW: Bools, share_W: Ints, most: int) -> None:
    """Where second copies fill the places that a pair without any needs, they make room for it."""
    missing = int((~host_PW.any(axis=1)).sum()) - int((most - host_PW.sum(axis=0)).sum())
    for pair in np.flatnonzero(host_PW.sum(axis=1) > 1)[: max(0, missing)]:
        host_PW[pair, np.flatnonzero(host_PW[pair])[-1]] = False


def _add_copy(host_PW: Bools, pair: int, node_W: Ints, cohort_W: Ints, share_W: Ints, most: int) -> None:
    hosts = np.flatnonzero(host_PW[pair])
    load_W = host_PW.sum(axis=0)
    allowed = (load_W < most) & ~np.isin(node_W, node_W[hosts])
    candidates = np.flatnonzero(allowed)
    if not len(candidates):
        return
    partners_W = (host_PW & host_PW[:, hosts].any(axis=1, keepdims=True)).sum(axis=0)
    order = np.lexsort(
        (
            candidates,
            load_W[candidates] / np.maximum(share_W[candidates], 1),
            -partners_W[candidates],
            load_W[candidates] >= share_W[candidates],
            np.isin(cohort_W[candidates], cohort_W[hosts]),
        )
    )
    host_PW[pair, candidates[order[0]]] = True
