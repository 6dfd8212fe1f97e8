"""The best pools and widths, where few are left that could be in it: over all pools at once, or two at a time.

A choice that is short of its job's best, at the prices of `markets`, by more than the gap between bound and value is
in no better plan (as in `allocation`). What remains is searched by dynamic programming (see `several_knapsacks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray

from scheduler.planning.allocation import EXACT
from scheduler.planning.candidates import NOTHING, Candidate, Key, Pooling
from scheduler.planning.markets import Market, Prices, prices_of
from scheduler.planning.prices import Floats
from scheduler.planning.several_knapsacks import Option, best_options

EFFORT = 20_000_000
"""Sums of one search: about a twentieth of a second."""

TWOS = 20
"""Searches of two pools, at most."""


def search(candidates: Sequence[Candidate], prices: Prices, value: float) -> Pooling | None:
    """The optimum, if what could be in a plan better than `value` is few enough to search; else None."""
    least_J = prices.made - (prices.bound - value + EXACT * max(1.0, abs(prices.bound)))
    near = [_near(market, prices.price[market.key], least_J) for market in prices.markets]
    rooms = [_room(market, near_F) for market, near_F in zip(prices.markets, near, strict=True)]
    if prod(room + 1 for room in rooms) * (len(candidates) + sum(int(n.sum()) for n in near)) > EFFORT:
        return None
    options = _options(candidates, prices.markets, near, least_J)
    chosen = best_options(options, rooms)
    if chosen is None:
        return None
    best = [of_job[index] for of_job, index in zip(options, chosen, strict=True)]
    pools = tuple(
        prices.markets[option.pool].key if option.width else next(iter(candidate.demands))
        for option, candidate in zip(best, candidates, strict=True)
    )
    total = sum(option.value for option in best)
    return Pooling(pools, tuple(option.width for option in best), total, total)


def _near(market: Market, price: float, least_J: Floats) -> NDArray[np.bool_]:
    """Choices of a market that are worth at least so much at its price [F]."""
    choices = market.choices
    return np.asarray(choices.value - price * choices.width >= choices.to_each(least_J[market.jobs]))


def _room(market: Market, near_F: NDArray[np.bool_]) -> int:
    """Devices that could be used of a market."""
    most_J = np.maximum.reduceat(np.where(near_F, market.choices.width, 0), market.choices.start)
    return min(market.capacity, int(most_J.sum()))


def _options(
    candidates: Sequence[Candidate], markets: Sequence[Market], near: Sequence[NDArray[np.bool_]], least_J: Floats
) -> list[list[Option]]:
    """What is near, by job: to stop comes first, then what is first for the job."""
    options = [
        [Option(0, 0, candidate.stopped)] if candidate.stopped >= least else []
        for candidate, least in zip(candidates, least_J, strict=True)
    ]
    for pool, (market, near_F) in enumerate(zip(markets, near, strict=True)):
        at_K = np.flatnonzero(near_F)
        job_K = market.jobs[np.searchsorted(market.choices.start, at_K, side="right") - 1]
        width_K, value_K = market.choices.width[at_K], market.choices.value[at_K]
        for job, width, value in zip(job_K.tolist(), width_K.tolist(), value_K.tolist(), strict=True):
            options[job].append(Option(pool, width, value))
    keys = [market.key for market in markets]
    return [_in_order(of_job, candidate, keys) for of_job, candidate in zip(options, candidates, strict=True)]


def _in_order(options: list[Option], candidate: Candidate, keys: Sequence[Key]) -> list[Option]:
    order = {key: number for number, key in enumerate(candidate.demands)}
    return sorted(options, key=lambda option: order[keys[option.pool]] if option.width else -1)


# --- two at a time ---------------------------------------------------------------------------------------------


def search_by_twos(candidates: Sequence[Candidate], capacities: Mapping[Key, int], found: Pooling) -> Pooling:
    """Two pools after two searched for the best that their jobs, and those that are stopped, could have in them; until
    no two are better. Pools that are too large for it stay as they are."""
    twos = list(combinations(sorted(capacities), 2))
    open_twos = dict.fromkeys(twos)
    for _ in range(TWOS):
        if not open_twos:
            break
        two = next(iter(open_twos))
        del open_twos[two]
        better = _search_two(candidates, {key: capacities[key] for key in two}, found)
        if better is not None:
            found = better
            open_twos.update((other, None) for other in twos if other != two and set(other) & set(two))
    return found


def _search_two(candidates: Sequence[Candidate], two: Mapping[Key, int], found: Pooling) -> Pooling | None:
    """What is better, if that is found."""
    jobs = [job for job, width in enumerate(found.widths) if (found.pools[job] in two or not width)]
    jobs = [job for job in jobs if two.keys() & candidates[job].demands.keys()]
    demands = [{key: d for key, d in candidates[job].demands.items() if key in two} for job in jobs]
    if not any(len(of_job) > 1 for of_job in demands):
        return None
    own = [replace(candidates[job], demands=of_job) for job, of_job in zip(jobs, demands, strict=True)]
    now = sum(candidates[job].worth(found.pools[job], found.widths[job]) for job in jobs)
    prices = prices_of(own, two)
    best = search(own, prices, now)
    if best is None or best.value - now <= NOTHING * abs(prices.bound):
        return None
    pools, widths = list(found.pools), list(found.widths)
    for job, pool, width in zip(jobs, best.pools, best.widths, strict=True):
        pools[job], widths[job] = pool, width
    value = found.value + best.value - now
    return replace(found, pools=tuple(pools), widths=tuple(widths), value=value, bound=max(found.bound, value))
