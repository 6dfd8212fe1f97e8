"""The grouped knapsack behind the frictionless bound and the published policies: one width for each job.

Kept apart from `scheduler.planning.allocation` on purpose: what the planner is judged by is not its own code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def best_values(values: Sequence[Values], capacity: int) -> list[Values]:
    """For each number of leading jobs, what they are worth together on exactly n nodes [capacity + 1].

    `values[j][w]` is what width w is worth to job j; -inf where it is not allowed.
    """
    reached = [np.full(capacity + 1, -np.inf)]
    reached[0][0] = 0.0
    for of_job in values:
        reached.append(_sums(reached[-1], of_job[: capacity + 1]).max(axis=1))
    return reached


def _sums(reached: Values, of_job: Values) -> Values:
    """[nodes, width]: the job at this width, and the jobs before it on the rest."""
    most = len(of_job) - 1
    padded = np.concatenate([np.full(most, -np.inf), reached])
    rest = np.lib.stride_tricks.sliding_window_view(padded, most + 1)[:, ::-1]
    sums: Values = rest + of_job
    return sums


def best_widths(values: Sequence[Values], capacity: int) -> list[int]:
    """The widths that are worth most on at most `capacity` nodes. Ties go to fewer nodes, and to smaller widths."""
    reached = best_values(values, capacity)
    left = int(np.argmax(reached[-1]))
    widths = []
    for before, of_job in zip(reversed(reached[:-1]), reversed(values), strict=True):
        widths.append(_width(before, of_job[: left + 1], left))
        left -= widths[-1]
    return widths[::-1]


def _width(before: Values, of_job: Values, left: int) -> int:
    return int(np.argmax(before[left - np.arange(len(of_job))] + of_job))
