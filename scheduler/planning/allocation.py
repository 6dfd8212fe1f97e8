"""How many workers each job of a pool gets: exact dynamic programming over counts.

The published problem (BFTrainer, arXiv 2106.12091) is a mixed-integer program over job x node. Devices of a pool are
interchangeable and a job only grows or only shrinks in one event, so only the counts matter, and the same optimum comes
from a grouped knapsack: one of several widths for each job, the sum at most the pool. Unlike there, a start from zero
is charged too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from scheduler.domain.jobs import RescaleCosts
from scheduler.planning.curves import Rates

Values = NDArray[np.float64]

BLOCK = 200_000
"""Sums that are looked at in one step: few enough to stay in the processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """The widths that one job may have, `first` to `first + len(values) - 1`, and what each is worth.

    `stopped` is what width 0 is worth; None if the job must not stop.
    """

    first: int
    values: Values
    stopped: float | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """The width of each job, in the order of the demands, and what all of them together are worth."""

    widths: tuple[int, ...]
    value: float


def width_values(rates: Rates, kept: int, current: int, costs: RescaleCosts, horizon_s: float) -> Values:
    """What each width is worth over the horizon [len(rates)]: work done less what its rescale costs.

    `current` workers are assigned, `kept` of them are on nodes that stay. Growing past `kept` costs `up_s`, anything
    less than `current` costs `down_s`, at the present rate; a start from zero is charged at the rate that it starts.
    """
    widths = np.arange(len(rates))
    stall_s = np.where(widths > kept, costs.up_s, np.where(widths < current, costs.down_s, 0.0))
    charge = rates if current == 0 else np.full(len(rates), rates[min(current, len(rates) - 1)])
    values: Values = horizon_s * rates - stall_s * charge
    return values


def allocate(demands: Sequence[Demand], capacity: int) -> Allocation | None:
    """The best widths that fit in `capacity`; None if not even the smallest fit.

    Takes `sum(len(values)) * capacity` steps. Ties go to larger widths of later jobs.
    """
    best: Values = np.zeros(capacity + 1)
    choices: list[NDArray[np.int32]] = []
    for demand in demands:
        best, choice = _with_job(best, demand, capacity)
        choices.append(choice)
    if not np.isfinite(best[capacity]):
        return None
    return Allocation(_widths(choices, capacity), float(best[capacity]))


def _with_job(best: Values, demand: Demand, capacity: int) -> tuple[Values, NDArray[np.int32]]:
    """Max-plus convolution of one job's values with what the earlier jobs reach on at most c devices [capacity + 1]."""
    reached = np.full(capacity + 1, -np.inf)
    choice = np.zeros(capacity + 1, dtype=np.int32)
    if demand.stopped is not None:
        reached[:] = best + demand.stopped
    values = demand.values[: max(0, capacity + 1 - demand.first)]
    if not len(values):
        return reached, choice
    padded = np.concatenate([np.full(len(values) - 1, -np.inf), best[: capacity + 1 - demand.first]])
    left = sliding_window_view(padded, len(values))  # [c, n]: what is reached on the devices that a width leaves
    values = np.ascontiguousarray(values[::-1])  # the widest first, as in `left`
    rows = max(1, BLOCK // len(values))
    for start in range(0, len(left), rows):
        totals = left[start : start + rows] + values
        at = totals.argmax(axis=1)
        found = np.take_along_axis(totals, at[:, None], axis=1)[:, 0]
        here = slice(demand.first + start, demand.first + start + len(at))
        better = found > reached[here]
        reached[here][better] = found[better]
        choice[here][better] = demand.first + len(values) - 1 - at[better]
    return reached, choice


def _widths(choices: list[NDArray[np.int32]], capacity: int) -> tuple[int, ...]:
    widths = []
    for choice in reversed(choices):
        widths.append(int(choice[capacity]))
        capacity -= widths[-1]
    return tuple(reversed(widths))
