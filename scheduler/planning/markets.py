"""What a device costs in each of several pools, and the bound that comes with these prices.

Each pool's dual price in turn (see `prices`), with what jobs could make elsewhere as their alternative, until the
prices stand. Together they bound from above what any sharing-out is worth: the Lagrangian dual over all pools.

Dimensions: P pools, J jobs, F choices of one pool's jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.planning.allocation import choices_of
from scheduler.planning.candidates import Candidate, Key
from scheduler.planning.prices import Choices, Floats, Ints, lowest_bound

SWEEPS = 8
"""Rounds over all pools' prices, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """One pool, and the jobs that could be in it. A job's first choice is not to be."""

    key: Key
    capacity: int
    jobs: Ints  # indices of candidates
    choices: Choices

    def price(self, elsewhere: Floats) -> float:
        """The dual price, where `elsewhere` [jobs] is what the jobs make if they are not here."""
        self.choices.value[self.choices.start] = elsewhere
        dual = lowest_bound(self.choices, self.capacity)
        assert dual is not None, "not to be fits always"
        return dual.price

    def surplus(self, price: float) -> Floats:
        """What each job makes here at this price [jobs]; -inf if it does not fit."""
        self.choices.value[self.choices.start] = -np.inf
        surplus_F = self.choices.value - price * self.choices.width
        return np.asarray(np.maximum.reduceat(surplus_F, self.choices.start))


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """The lowest bound that was found, and what belongs to it."""

    markets: Sequence[Market]
    price: Mapping[Key, float]
    bound: float
    made: Floats  # [J] what each job makes at these prices, at best


def prices_of(candidates: Sequence[Candidate], capacities: Mapping[Key, int]) -> Prices:
    """The prices of the pools that any candidate could be in, all of which `capacities` names. All may stop."""
    wanted = {key for candidate in candidates for key in candidate.demands}
    stopped_J = np.array([candidate.stopped for candidate in candidates])
    markets = [_market(candidates, key, capacity) for key, capacity in sorted(capacities.items()) if key in wanted]
    price_P, capacity_P = np.zeros(len(markets)), np.array([market.capacity for market in markets])
    made_PJ = np.full((len(markets), len(stopped_J)), -np.inf)
    for market, made_J in zip(markets, made_PJ, strict=True):
        made_J[market.jobs] = market.surplus(0.0)

    def found() -> Prices:
        best_J = np.maximum(stopped_J, made_PJ.max(axis=0))
        price = {market.key: float(of) for market, of in zip(markets, price_P, strict=True)}
        return Prices(markets, price, float(price_P @ capacity_P + best_J.sum()), best_J)

    best = found()
    for _ in range(SWEEPS):
        before_P = price_P.copy()
        for number, market in enumerate(markets):
            elsewhere_J = np.maximum(stopped_J, np.delete(made_PJ, number, axis=0).max(axis=0, initial=-np.inf))
            price_P[number] = market.price(elsewhere_J[market.jobs])
            made_PJ[number, market.jobs] = market.surplus(float(price_P[number]))
            best = min(best, found(), key=lambda prices: prices.bound)
        if np.allclose(price_P, before_P, rtol=1e-6):
            break
    return best


def _market(candidates: Sequence[Candidate], key: Key, capacity: int) -> Market:
    jobs = [number for number, candidate in enumerate(candidates) if key in candidate.demands]
    choices = choices_of([replace(candidates[job].demands[key], stopped=0.0) for job in jobs], capacity)
    assert choices is not None, "each has one"
    return Market(key, capacity, np.array(jobs), choices)
