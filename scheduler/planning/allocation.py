"""How many workers each job of a pool gets: exact, with a certified bound where the pool is too large for that.

The published problem (BFTrainer, arXiv 2106.12091) is a mixed-integer program over job x node. Devices of a pool are
interchangeable and a job only grows or only shrinks in one event, so only the counts matter, and the same optimum
comes from a grouped knapsack: one of several widths for each job, the sum at most the pool.

1. Price: the dual price of a device, and the bound that comes with it (see `prices`).
2. Fill: the choices that jobs make at that price, as far as they fit; the rest to whoever gains most by it.
3. Core: a choice whose surplus at that price is short of its job's best by more than the gap between bound and value
   is in no better plan. What remains is searched by dynamic programming (see `knapsack`), nearest to the price first.

Source of 3: D. Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", EJOR 83 (1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.planning.knapsack import best_choices
from scheduler.planning.prices import Choices, Dual, Floats, Ints, lowest_bound

FIRST_EFFORT = 2_000_000
"""Sums of the first search of the core: about two milliseconds."""

MOST_EFFORT = 60_000_000
"""Sums of the last: above, the value is what was found, and the bound says how far from the optimum it can be."""

EXACT = 1e-10
"""Gap, as a share of the bound, that is only rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """The widths that one job may have, `first` to `first + len(values) - 1`, and what each is worth.

    `stopped` is what width 0 is worth; None if the job must not stop.
    """

    first: int
    values: Floats
    stopped: float | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """The width of each job, in the order of the demands, what all of them together are worth, and at most could be.

    `price` is that of one device: what more or less of them would be worth, about.
    """

    widths: tuple[int, ...]
    value: float
    bound: float
    price: float = 0.0

    @property
    def gap(self) -> float:
        """How far from the optimum the value can be, at most; 0 where it is the optimum."""
        return self.bound - self.value


def allocate(demands: Sequence[Demand], capacity: int) -> Allocation | None:
    """The best widths that fit in `capacity`; None if not even the narrowest fit."""
    if not demands:
        return Allocation((), 0.0, 0.0)
    choices = choices_of(demands, capacity)
    dual = lowest_bound(choices, capacity) if choices else None
    if choices is None or dual is None:
        return None
    choice_J = _fill(choices, dual, capacity)
    choice_J, is_exact = _search(choices, dual, choice_J, capacity)
    value = _value(choices, choice_J)
    widths = tuple(choices.width[choice_J].tolist())
    return Allocation(widths, value, value if is_exact else max(value, dual.bound), dual.price)


def choices_of(demands: Sequence[Demand], capacity: int) -> Choices | None:
    """All widths that fit in the capacity on their own; None if a job has none."""
    parts: list[Floats] = []
    for demand in demands:
        if demand.stopped is not None:
            parts.append(np.array([demand.stopped]))
        parts.append(demand.values[: max(0, capacity + 1 - demand.first)])
    stops_J = np.array([demand.stopped is not None for demand in demands])
    first_J = np.array([demand.first for demand in demands])
    most_J = np.array([len(demand.values) for demand in demands])
    size_J = np.minimum(np.maximum(capacity + 1 - first_J, 0), most_J) + stops_J
    if not size_J.all():
        return None
    end_J = size_J.cumsum()
    start_J = end_J - size_J
    width_F = np.arange(int(end_J[-1])) + (first_J - stops_J - start_J).repeat(size_J)
    width_F[start_J[stops_J]] = 0
    return Choices(width_F, np.concatenate(parts), start_J, size_J)


def _value(choices: Choices, choice_J: Ints) -> float:
    return float(choices.value[choice_J].sum())


# --- fill ------------------------------------------------------------------------------------------------------


def _fill(choices: Choices, dual: Dual, capacity: int) -> Ints:
    """What fits of the jobs' choices at the price, then the single changes that gain most while there is room."""
    choice_J = dual.few.copy()
    spare = capacity - int(choices.width[choice_J].sum())
    more_J = choices.width[dual.many] - choices.width[choice_J]
    for job in (more_J > 0).nonzero()[0]:
        if more_J[job] <= spare:
            choice_J[job] = dual.many[job]
            spare -= int(more_J[job])
    _grow(choices, choice_J, spare)
    return choice_J


def _grow(choices: Choices, choice_J: Ints, spare: int) -> None:
    """Make the change that gains most and fits, while there is one: choices no wider than what is spare now."""
    own_J = choices.width[choice_J]
    ahead_F = (choices.width <= choices.to_each(own_J + spare)).nonzero()[0]
    job_F = choices.start.searchsorted(ahead_F, side="right") - 1
    width_F, value_F = choices.width[ahead_F], choices.value[ahead_F]
    for _ in range(len(choice_J)):
        now_F = choice_J[job_F]
        gain_F = value_F - choices.value[now_F]
        gain_F[width_F - choices.width[now_F] > spare] = 0.0
        best = int(gain_F.argmax())
        if gain_F[best] <= 1e-12 * max(1.0, abs(float(value_F[best]))):
            return
        spare -= int(width_F[best] - choices.width[now_F[best]])
        choice_J[job_F[best]] = ahead_F[best]


# --- core ------------------------------------------------------------------------------------------------------


def _search(choices: Choices, dual: Dual, choice_J: Ints, capacity: int) -> tuple[Ints, bool]:
    """The best choices found, and whether nothing is better."""
    surplus_F = choices.value - dual.price * choices.width
    short_F = choices.to_each(np.maximum.reduceat(surplus_F, choices.start)) - surplus_F
    for most in (FIRST_EFFORT, MOST_EFFORT):
        gap = dual.bound - _value(choices, choice_J)
        if gap <= EXACT * max(1.0, abs(dual.bound)):
            return choice_J, True
        core, is_whole = _core(choices, short_F, choice_J, gap, most, capacity)
        found_J = core.best()
        if found_J is not None and _value(choices, found_J) > _value(choices, choice_J):
            choice_J = found_J
        if is_whole:
            return choice_J, True
    return choice_J, dual.bound - _value(choices, choice_J) <= EXACT * max(1.0, abs(dual.bound))


@dataclass(frozen=True, slots=True, eq=False)
class _Core:
    """The choices that are searched; jobs with only one are settled."""

    choices: Choices
    keep: NDArray[np.bool_]  # [F]
    choice: Ints  # [J] what is chosen so far; all of it is kept
    capacity: int

    def _open(self) -> Ints:
        return np.flatnonzero(np.add.reduceat(self.keep.astype(np.int64), self.choices.start) > 1)

    def room(self) -> int:
        """Devices over which the search runs: what the settled jobs and everybody's narrowest leave."""
        width_F, open_J = self.choices.width, self._open()
        far = int(width_F[-1]) + int(width_F.max()) + 1
        least_J = np.minimum.reduceat(np.where(self.keep, width_F, far), self.choices.start)
        most_J = np.maximum.reduceat(np.where(self.keep, width_F, -1), self.choices.start)
        spare = self.capacity - int(least_J.sum())
        return max(-1, min(spare, int((most_J - least_J)[open_J].sum())))

    def effort(self) -> int:
        """Sums that the search looks at."""
        kept_J = np.add.reduceat(self.keep.astype(np.int64), self.choices.start)
        return int(kept_J[kept_J > 1].sum()) * (self.room() + 1)

    def best(self) -> Ints | None:
        """The best choices [J] within the core; None if none fits."""
        room, open_J = self.room(), self._open()
        if room < 0:
            return None
        kept = [self._kept(job) for job in open_J]
        width_F, value_F = self.choices.width, self.choices.value
        found = best_choices([(width_F[at] - width_F[at[0]], value_F[at]) for at in kept], room)
        if found is None:
            return None
        kept_F = np.where(self.keep, np.arange(len(self.keep)), len(self.keep))
        choice_J = np.minimum.reduceat(kept_F, self.choices.start)
        choice_J[open_J] = [at[index] for at, index in zip(kept, found, strict=True)]
        return np.asarray(choice_J)

    def _kept(self, job: int) -> Ints:
        start, size = self.choices.start[job], self.choices.size[job]
        return np.asarray(start + np.flatnonzero(self.keep[start : start + size]))


def _core(
    choices: Choices, short_F: Floats, choice_J: Ints, gap: float, most: int, capacity: int
) -> tuple[_Core, bool]:
    """The choices short by less than the gap, or as many of the nearest as the effort allows; whether it is all."""
    limit, is_whole = gap, True
    while True:
        keep_F = short_F < limit
        keep_F[choice_J] = True
        core = _Core(choices, keep_F, choice_J, capacity)
        if core.effort() <= most:
            return core, is_whole
        limit, is_whole = limit / 2, False
