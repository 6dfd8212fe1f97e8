"""The price of a device: the Lagrangian dual of sharing devices out among jobs, and so a bound that no plan beats.

Dimensions: F choices (a width of a job, flat, job by job), J jobs. If every device costs `price`, each job alone takes
the choice with the largest surplus `value - price * width`; all surpluses and the worth of the capacity together bound
the best value from above, whatever the price. The lowest bound is the optimum of the linear relaxation, which may
mix a job's choices (the upper concave hull of its values).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_ROUNDS = 200
"""Prices tried at most; a few suffice, because each is where two supporting lines of the bound meet."""


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """All widths that all jobs may have. Invariant: a job's choices are sorted by width, none is there twice."""

    width: Ints  # [F]
    value: Floats  # [F]
    start: Ints  # [J] where each job's choices begin
    job: Ints  # [F]

    def taken_at(self, price: float) -> Ints:
        """What each job takes at this price [J]; the narrowest of equals."""
        surplus_F = self.value - price * self.width
        best_J = np.maximum.reduceat(surplus_F, self.start)
        is_best_F = surplus_F >= best_J[self.job]
        at_F = np.where(is_best_F, np.arange(len(surplus_F)), len(surplus_F))
        return np.asarray(np.minimum.reduceat(at_F, self.start))


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
        found = line(choices.taken_at(price))
        if found.at(price) <= few.at(price) + 1e-12 * abs(few.value) or found.spare in (few.spare, many.spare):
            break
        few, many = (found, many) if found.spare >= 0 else (few, found)
    bound = max(line(choices.taken_at(price)).at(price), few.value)
    return Dual(price, bound, few.choice, many.choice)
