"""Jobs' pools made better, one change after another: each pool is shared out exactly among who is in it.

At the price of a device that a pool's members make among themselves, no sharing-out of it among slightly other members
is worth more than the bound at that price. So each change of one or two jobs' pools has a bound on what it can gain:
those that promise most are tried first, and those that promise nothing never.

Dimensions: P pools, J jobs, K single changes that promise most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from scheduler.planning.allocation import Allocation, allocate
from scheduler.planning.candidates import NOTHING, Candidate, Pooling
from scheduler.planning.markets import Market
from scheduler.planning.prices import Floats, Ints

Change = dict[int, int]
"""Jobs and the pools they are to move to, all as indices."""

SINGLES = 100
"""Single changes that are looked at, alone and in pairs."""

EFFORT = 150
"""Pools shared out at most: about a quarter of a second."""


class Mender:
    """Who is in which pool (`own` [J], indices of markets). All may stop."""

    def __init__(self, candidates: Sequence[Candidate], markets: Sequence[Market], own: Ints, bound: float) -> None:
        self._candidates, self._markets = candidates, markets
        self._stopped_J = np.array([candidate.stopped for candidate in candidates])
        self._known: dict[tuple[int, bytes], Allocation] = {}
        self._shared: list[Allocation] = []
        self._slack_P = np.zeros(len(markets))
        self._surplus_PJ = np.full((len(markets), len(own)), -np.inf)
        self._is_free_J = np.array([candidate.is_free for candidate in candidates])
        self._own = own
        self._bound = bound
        self._shared = [self._share(pool, own) for pool in range(len(markets))]
        self._look(range(len(markets)))

    @property
    def value(self) -> float:
        """Of all pools together."""
        return sum(shared.value for shared in self._shared)

    def pooling(self) -> Pooling:
        """What was found."""
        width_J = np.zeros(len(self._own), dtype=np.int64)
        for pool, shared in enumerate(self._shared):
            width_J[np.flatnonzero(self._own == pool)] = shared.widths
        pools = tuple(self._markets[pool].key for pool in self._own)
        return Pooling(pools, tuple(width_J.tolist()), self.value, max(self._bound, self.value))

    def mend(self, enough: float) -> None:
        """Make the changes that gain, until none does, the value is within the share `enough` of the bound, or the
        effort is spent."""
        while self._bound - self.value > enough * abs(self._bound):
            if not any(self._try(change) for change in self._changes()):
                return

    def _changes(self) -> Iterator[Change]:
        """Changes of one or two jobs' pools that might gain, the best promise first."""
        gain_PJ = self._surplus_PJ - self._surplus_PJ[self._own, np.arange(len(self._own))]
        gain_PJ[self._own, np.arange(len(self._own))] = -np.inf
        gain_PJ[:, ~self._is_free_J] = -np.inf
        flat_K = np.argsort(-gain_PJ, axis=None, kind="stable")[:SINGLES]
        pool_K, job_K = np.unravel_index(flat_K, gain_PJ.shape)
        promise_KK = self._promises(gain_PJ[pool_K, job_K], pool_K, job_K)
        for at in np.argsort(-promise_KK, axis=None, kind="stable"):
            one, two = divmod(int(at), len(flat_K))
            if promise_KK[one, two] <= NOTHING * abs(self._bound) or len(self._known) > EFFORT:
                return
            yield {int(job_K[at]): int(pool_K[at]) for at in (one, two)}

    def _promises(self, gain_K: Floats, pool_K: Ints, job_K: Ints) -> Floats:
        """What two single changes can gain together at most [K, K]; on the diagonal, one alone."""
        number_K = np.arange(len(gain_K))
        touched_KP = np.zeros((len(gain_K), len(self._markets)), dtype=np.bool_)
        touched_KP[number_K, pool_K] = touched_KP[number_K, self._own[job_K]] = True
        slack_KK = (touched_KP[:, None] | touched_KP[None]) @ self._slack_P
        sum_KK = gain_K[:, None] + gain_K[None] + slack_KK
        sum_KK[number_K, number_K] = gain_K + touched_KP @ self._slack_P
        twice_KK = (job_K[:, None] == job_K[None]) | (number_K[:, None] > number_K[None])
        twice_KK[number_K, number_K] = False
        return np.where(twice_KK, -np.inf, sum_KK)

    def _try(self, change: Change) -> bool:
        """Make the change if it gains."""
        touched = sorted({int(self._own[job]) for job in change} | set(change.values()))
        after = self._own.copy()
        after[list(change)] = list(change.values())
        then = {pool: self._share(pool, after) for pool in touched}
        gain = sum(then[pool].value - self._shared[pool].value for pool in touched)
        if gain <= NOTHING * abs(self._bound):
            return False
        self._own = after
        for pool in touched:
            self._shared[pool] = then[pool]
        self._look(touched)
        return True

    def _share(self, pool: int, own: Ints) -> Allocation:
        """One pool, shared out among its members."""
        members = np.flatnonzero(own == pool)
        known = self._known.get((pool, members.tobytes()))
        if known is None:
            market = self._markets[pool]
            found = allocate([self._candidates[int(job)].demand(market.key) for job in members], market.capacity)
            assert found is not None, "all may stop"
            known = self._known[pool, members.tobytes()] = found
        return known

    def _look(self, pools: Iterable[int]) -> None:
        """What jobs make at the prices of pools whose members have changed, and the bound that these prices give."""
        for pool in pools:
            market, price = self._markets[pool], self._shared[pool].price
            at_most_J = np.maximum(self._stopped_J[market.jobs], market.surplus(price))
            self._surplus_PJ[pool, market.jobs] = at_most_J
            made = float(at_most_J[self._own[market.jobs] == pool].sum())
            self._slack_P[pool] = price * market.capacity + made - self._shared[pool].value
        worth = sum(s.price * m.capacity for s, m in zip(self._shared, self._markets, strict=True))
        self._bound = min(self._bound, worth + float(self._surplus_PJ.max(axis=0).sum()))
