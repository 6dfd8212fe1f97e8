"""The grouped knapsack: one of several widths for each job, the sum at most the capacity; by dynamic programming.

Nothing but the best values of each stage is kept; which widths led there is found by asking again on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Options = tuple[Ints, Floats]
"""One job's widths, and what each is worth."""


def effort(options: Sequence[Options], capacity: int) -> int:
    """Sums that `best_choices` looks at."""
    return sum(len(widths) for widths, _ in options) * (capacity + 1)


def best_choices(options: Sequence[Options], capacity: int) -> list[int] | None:
    """For each job the index of its width in the best combination; None if no combination fits."""
    stages = [np.zeros(capacity + 1)]
    for widths, values in options:
        stages.append(_with_job(stages[-1], widths, values))
    if not np.isfinite(stages[-1][capacity]):
        return None
    chosen = []
    for (widths, values), before in zip(reversed(options), reversed(stages[:-1]), strict=True):
        totals = np.where(widths <= capacity, before[capacity - np.minimum(widths, capacity)] + values, -np.inf)
        chosen.append(int(totals.argmax()))
        capacity -= int(widths[chosen[-1]])
    return chosen[::-1]


def _with_job(before: Floats, widths: Ints, values: Floats) -> Floats:
    """Max-plus convolution: what the jobs before and this one reach on at most c devices [capacity + 1]."""
    reached = np.full(len(before), -np.inf)
    sums = np.empty(len(before))
    for width, value in zip(widths.tolist(), values.tolist(), strict=True):
        count = len(before) - width
        if count <= 0:
            break
        np.add(before[:count], value, out=sums[:count])
        np.maximum(reached[width:], sums[:count], out=reached[width:])
    return reached
