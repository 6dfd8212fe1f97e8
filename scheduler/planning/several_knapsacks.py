"""The grouped knapsack with several sacks: one of several (pool, width) for each job, what goes into a pool at most
its capacity. By dynamic programming over what all pools have taken together, so for small ones only.

As in `knapsack`, only the best values of each stage are kept; what led there is asked again on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Stage = NDArray[np.float64]
"""What the jobs so far reach with at most so many devices of each pool [capacity + 1 of each pool]."""


class Option(NamedTuple):
    """So many devices of a pool (as an index), and what they are worth to the job."""

    pool: int
    width: int
    value: float


def best_options(options: Sequence[Sequence[Option]], capacities: Sequence[int]) -> list[int] | None:
    """For each job the index of its option in the best combination, the first of equals; None if none fits."""
    stages = [np.zeros([capacity + 1 for capacity in capacities])]
    for of_job in options:
        stages.append(_with_job(stages[-1], of_job))
    left = list(capacities)
    if not np.isfinite(stages[-1][tuple(left)]):
        return None
    chosen = []
    for of_job, before in zip(reversed(options), reversed(stages[:-1]), strict=True):
        totals = [_reached(before, option, left) for option in of_job]
        chosen.append(int(np.argmax(totals)))
        best = of_job[chosen[-1]]
        left[best.pool] -= best.width
    return chosen[::-1]


def _with_job(before: Stage, options: Sequence[Option]) -> Stage:
    reached = np.full(before.shape, -np.inf)
    for pool, width, value in options:
        count = before.shape[pool] - width
        if count > 0:
            target = np.moveaxis(reached, pool, 0)[width:]
            np.maximum(target, np.moveaxis(before, pool, 0)[:count] + value, out=target)
    return reached


def _reached(before: Stage, option: Option, left: Sequence[int]) -> float:
    rest = list(left)
    rest[option.pool] -= option.width
    return -np.inf if rest[option.pool] < 0 else float(before[tuple(rest)]) + option.value
