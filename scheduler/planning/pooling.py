"""Which pool each job goes to, where it could go to several (kinds of device, sites), and how wide it is there.

Pools are taken together as far as some job could be in either. Then:

1. Price: what a device costs in each pool, and the bound that comes with it (see `markets`).
2. Place: each job, those with most to lose first, where it makes most at these prices of what is left.
3. Search: where few choices are left that could be in a better plan, for the best of them: the optimum (see
   `pool_search`). Else for the best in two pools at a time.
4. Mend: one job moves, or two do, while that gains (see `mending`).
5. Sharpen: where wide gangs leave much over, a tighter bound, and better pools on the way (see `sharpening`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.planning.allocation import Demand, allocate
from scheduler.planning.candidates import Candidate, Key, Pooling, all_may_stop, components
from scheduler.planning.markets import Prices, prices_of
from scheduler.planning.mending import Mender
from scheduler.planning.pool_search import search, search_by_twos
from scheduler.planning.sharpening import sharpen

ENOUGH = 1e-3
"""Distance from the bound, as a share of it, at which nothing more is tried."""


def choose_pools(candidates: Sequence[Candidate], capacities: Mapping[Key, int]) -> Pooling:
    """A pool for each job, and the widths there. In each pool by itself those that must run there have to fit."""
    pools, widths = [("", "")] * len(candidates), [0] * len(candidates)
    value = bound = 0.0
    for jobs, keys in components(candidates):
        part = _choose([candidates[job] for job in jobs], {key: capacities[key] for key in keys})
        for job, pool, width in zip(jobs, part.pools, part.widths, strict=True):
            pools[job], widths[job] = pool, width
        value, bound = value + part.value, bound + part.bound
    return Pooling(tuple(pools), tuple(widths), value, bound)


def _choose(candidates: Sequence[Candidate], capacities: Mapping[Key, int]) -> Pooling:
    """Pools that belong together."""
    if len(capacities) == 1:
        return _alone(candidates, *capacities.items())
    candidates = all_may_stop(candidates)
    prices = prices_of(candidates, capacities)
    placed = _place(candidates, capacities, prices)
    found = _mender(candidates, prices, placed).pooling()
    best = search(candidates, prices, found.value)
    if best is not None or _is_enough(found):
        return best or found
    found = search_by_twos(candidates, capacities, found)
    if _is_enough(found):
        return found
    mender = _mender(candidates, prices, found.pools)
    mender.mend(ENOUGH)
    mended = mender.pooling()
    best = search(candidates, prices, mended.value)
    if best is not None or _is_enough(mended):
        return best or mended
    keys = [market.key for market in prices.markets]
    return sharpen(
        candidates,
        prices,
        mended,
        lambda own_J: _mender(candidates, prices, [keys[pool] for pool in own_J]).pooling(),
        ENOUGH,
    )


def _alone(candidates: Sequence[Candidate], pool: tuple[Key, int]) -> Pooling:
    key, capacity = pool
    found = allocate([candidate.demand(key) for candidate in candidates], capacity)
    assert found is not None, "those that must run fit"
    return Pooling((key,) * len(candidates), found.widths, found.value, found.bound)


def _mender(candidates: Sequence[Candidate], prices: Prices, pools: Sequence[Key]) -> Mender:
    number = {market.key: index for index, market in enumerate(prices.markets)}
    return Mender(candidates, prices.markets, np.array([number[key] for key in pools]), prices.bound)


def _is_enough(found: Pooling) -> bool:
    return found.gap <= ENOUGH * abs(found.bound)


def _place(candidates: Sequence[Candidate], capacities: Mapping[Key, int], prices: Prices) -> list[Key]:
    """A pool for each job; what it would have there is taken before the next job chooses."""
    left = dict(capacities)
    placed: dict[int, Key] = {}
    for job in sorted(range(len(candidates)), key=lambda job: (candidates[job].stopped - prices.made[job], job)):
        offers = {k: _best_of(demand, prices.price[k], left[k]) for k, demand in candidates[job].demands.items()}
        placed[job] = max(offers, key=lambda key: offers[key][0])
        surplus, width = offers[placed[job]]
        left[placed[job]] -= width if surplus > candidates[job].stopped else 0
    return [placed[job] for job in range(len(candidates))]


def _best_of(demand: Demand, price: float, room: int) -> tuple[float, int]:
    """The largest surplus within the room, and the width that has it; (-inf, 0) if none fits."""
    values = demand.values[: max(0, room + 1 - demand.first)]
    if not len(values):
        return -np.inf, 0
    surplus = values - price * np.arange(demand.first, demand.first + len(values))
    best = int(surplus.argmax())
    return float(surplus[best]), demand.first + best
