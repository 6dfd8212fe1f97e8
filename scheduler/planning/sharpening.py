"""A tighter bound for wide gangs, and better pools for them on the way.

Prices of devices (see `markets`) bound well where many narrow jobs share a pool. Where few wide gangs do, what they
leave over by not fitting is most of the gap, and no price of a device sees it. Here each pool is shared out exactly
among all who could be in it, and what is relaxed is that a job is in one pool only: to be in any costs a job `toll`,
which it gets back once. Any tolls bound from above what a sharing-out is worth; subgradient steps lower the bound. The
pools that jobs are in on the way are candidates for better ones.

Source of the relaxation: K. Jornsten, M. Nasberg, "A new Lagrangian relaxation approach to the generalized assignment
problem", EJOR 27 (1986); of the step: B. T. Polyak, "Minimization of unsmooth functionals" (1969).

Dimensions: P pools, J jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scheduler.planning.allocation import Demand, allocate
from scheduler.planning.candidates import Candidate, Pooling
from scheduler.planning.markets import Market, Prices
from scheduler.planning.prices import Floats, Ints

ROUNDS = 60
"""Steps at most."""

EFFORT = 400_000
"""Choices that are looked at in all these steps: about half a second."""

STALE = 5
"""Steps without a lower bound after which they become shorter."""

Share = Callable[[Ints], Pooling]
"""What is best if each job is in the pool with this number [J]."""


def sharpen(candidates: Sequence[Candidate], prices: Prices, found: Pooling, share: Share, enough: float) -> Pooling:
    """The best that was found, with the lowest bound, once they are within the share `enough`; or after some effort.

    All may stop.
    """
    stopped_J = np.array([candidate.stopped for candidate in candidates])
    free_J = np.array([candidate.is_free for candidate in candidates])
    toll_J = np.where(free_J, prices.made - stopped_J, 0.0)
    best, bound, step, stale = found, found.bound, 1.0, 0
    for _ in range(min(ROUNDS, EFFORT // sum(len(market.choices.value) for market in prices.markets))):
        gain_P, in_PJ = _share_out(candidates, prices.markets, stopped_J + toll_J)
        total = float((stopped_J + toll_J).sum() + gain_P.sum())
        stale = 0 if total < bound else stale + 1
        bound = min(bound, total)
        best = max(best, share(_pools(in_PJ, candidates, prices.markets)), key=lambda pooling: pooling.value)
        excess_J = np.where(free_J, in_PJ.sum(axis=0) - 1.0, 0.0)
        excess_J[(excess_J < 0) & (toll_J <= 0)] = 0.0
        if bound - best.value <= enough * abs(bound) or not excess_J.any():
            break
        if stale >= STALE:
            step, stale = step / 2, 0
        toll_J = np.maximum(0.0, toll_J + step * (total - best.value) / float((excess_J**2).sum()) * excess_J)
    return replace(best, bound=max(min(bound, found.bound), best.value))


def _share_out(
    candidates: Sequence[Candidate], markets: Sequence[Market], alone_J: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """What each pool makes at most beyond what its jobs have `alone` [P], and which jobs are in it for that [P, J]."""
    gain_P, in_PJ = np.zeros(len(markets)), np.zeros((len(markets), len(candidates)), dtype=np.bool_)
    for pool, market in enumerate(markets):
        demands = [candidates[int(job)].demands[market.key] for job in market.jobs]
        offers = [
            Demand(demand.first, demand.values - alone_J[job], stopped=0.0)
            for demand, job in zip(demands, market.jobs, strict=True)
        ]
        shared = allocate(offers, market.capacity)
        assert shared is not None, "all may stop"
        gain_P[pool] = shared.bound
        in_PJ[pool, market.jobs] = np.array(shared.widths) > 0
    return gain_P, in_PJ


def _pools(in_PJ: NDArray[np.bool_], candidates: Sequence[Candidate], markets: Sequence[Market]) -> Ints:
    """One pool for each job [J]: the least crowded of those that it is in, or could be in if it is in none."""
    number = {market.key: pool for pool, market in enumerate(markets)}
    crowd_P = in_PJ.sum(axis=1)
    own = []
    for job, candidate in enumerate(candidates):
        usable = [number[key] for key in candidate.demands]
        chosen = [pool for pool in usable if in_PJ[pool, job]]
        own.append(min(chosen or usable, key=lambda pool: (crowd_P[pool], pool)))
    return np.array(own)
