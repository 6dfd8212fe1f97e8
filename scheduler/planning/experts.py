"""Which trainer owns which (layer, expert) pair. Pure functions on arrays; ties break by the lowest index.

Dimensions: P pairs, W workers. `present_P` says where pairs are now; what can stay, stays. Served models' copies are
placed by `balance.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
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
