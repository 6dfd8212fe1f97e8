"""The price of a device: the Lagrangian dual of sharing devices out among jobs, and so a bound that no plan beats.

Dimensions: F choices (a width of a job, flat, job by job), J jobs. If every device costs `price`, each job alone takes
the choice with the largest surplus `value - price * width`; all surpluses and the worth of the capacity together bound
the best value from above, whatever the price. The lowest bound is the optimum of the linear relaxation, which may
mix a job's choices (the upper concave hull of its values).

The dearer a device, the narrower what each job takes. So between two prices only what lies between the jobs' choices
at these two is looked at, and most of the work is done at the first price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64)

MOST_ROUNDS = 200
"""Prices tried at most; a few suffice, because each is where two supporting lines of the bound meet."""


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """All widths that all jobs may have. Invariant: a job's choices are sorted by width, none is there twice."""

    width: Ints  # [F]
    value: Floats  # [F]
    start: Ints  # [J] where each job's choices begin
    size: Ints  # [J] how many it has

    def to_each(self, of_job: NDArray[Number]) -> NDArray[Number]:
        """What holds of a job [J], for each of its choices [F]."""
        return of_job.repeat(self.size)

    def taken_at(self, price: float) -> Ints:
        """What each job takes at this price [J]; the narrowest of equals."""
        surplus_F = self.value - price * self.width
        best_J = np.maximum.reduceat(surplus_F, self.start)
        best_F = (surplus_F == self.to_each(best_J)).nonzero()[0]
        return np.asarray(best_F[best_F.searchsorted(self.start)])

    def between(self, few: Ints, many: Ints) -> Choices:
        """Only what lies between two choices of each job."""
        size = many - few + 1
        end = size.cumsum()
        start = end - size
        at_F = np.arange(int(end[-1])) + (few - start).repeat(size)
        return Choices(self.width[at_F], self.value[at_F], start, size)


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """The lowest bound. At `price`, `few` fits in the capacity and `many` does not (or both are the same)."""

    price: float
    bound: float
    few: Ints  # [J] indices of choices
    many: Ints  # [J]


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """The bound that one set of choices gives as a function of the price: value + price * spare."""

    choice: Ints
    value: float
    spare: int

    def at(self, price: float) -> float:
        return self.value + price * self.spare


def lowest_bound(choices: Choices, capacity: int) -> Dual | None:
    """The dual optimum; None if not even the narrowest choices fit."""

    def line(choice_J: Ints) -> _Line:
        spare = capacity - int(choices.width[choice_J].sum())
        return _Line(choice_J, float(choices.value[choice_J].sum()), spare)

    few, many = line(choices.start), line(choices.taken_at(0.0))
    if few.spare < 0:
        return None
    if many.spare >= 0:
        return Dual(0.0, many.value, many.choice, many.choice)
    price = 0.0
    for _ in range(MOST_ROUNDS):
        price = max(0.0, (many.value - few.value) / (few.spare - many.spare))
        left = choices.between(few.choice, many.choice)
        found = line(left.taken_at(price) + few.choice - left.start)
        bound = max(found.at(price), few.value)
        if found.at(price) <= few.at(price) + 1e-12 * abs(few.value) or found.spare in (few.spare, many.spare):
            break
        few, many = (found, many) if found.spare >= 0 else (few, found)
    return Dual(price, bound, few.choice, many.choice)
