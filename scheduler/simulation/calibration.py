"""Is the forecast right? Predicted against observed survival of idle nodes, by a forecast that only knew the past."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.domain.cluster import Lease, LeaseKey, LeaseState
from scheduler.inventory.holding import COHORT_WINDOW_S
from scheduler.inventory.past import LEARN_EVERY_S, SitePast
from scheduler.planning.forecast import HORIZONS_S, Calibration
from scheduler.planning.lasting import Lasting
from scheduler.simulation.traces import IdleInterval, Trace

EVERY_S = 1800.0
"""How often the forecast is asked."""


@dataclass(frozen=True, slots=True)
class Foretold:
    """What was said of one idle node, and whether it came so."""

    at_s: float
    horizon_s: float
    chance: float
    lasted: bool


def calibrate(trace: Trace, horizons_s: Sequence[float] = HORIZONS_S, every_s: float = EVERY_S) -> list[Calibration]:
    """The mean of what was foretold of every idle node every so often, and of what came."""
    sums = {horizon_s: np.zeros(3) for horizon_s in horizons_s}
    for told in foretell(trace, horizons_s, every_s):
        sums[told.horizon_s] += told.chance, told.lasted, 1
    return [
        Calibration(horizon_s, predicted / max(asked, 1), observed / max(asked, 1), int(asked))
        for horizon_s, (predicted, observed, asked) in ((at, of.tolist()) for at, of in sums.items())
    ]


def foretell(
    trace: Trace, horizons_s: Sequence[float], every_s: float, past: SitePast | None = None
) -> Iterator[Foretold]:
    """Ask about every idle node every so often, of a forecast (`past`) that learns as a running scheduler does."""
    past, live = past or SitePast(), dict[LeaseKey, Lease]()
    news = list(_news(trace.intervals))
    ends_s = {lease.key: at_s for at_s, has_ended, lease in news if has_ended}
    next_news, start_s, end_s = 0, trace.intervals[0].start_s, trace.end_s
    for now_s in np.arange(start_s, end_s, LEARN_EVERY_S).tolist():
        while next_news < len(news) and news[next_news][0] <= now_s:
            at_s, has_ended, lease = news[next_news]
            next_news += 1
            if has_ended:
                past.ended(live.pop(lease.key), at_s, "owner")
            else:
                past.opened(at_s)
                live[lease.key] = lease
        chance = Lasting(now_s, [past.outlook("", now_s, live.values())]).chance
        if now_s == start_s or (now_s - start_s) % every_s >= LEARN_EVERY_S:
            continue
        for horizon_s in horizons_s:
            if now_s + horizon_s <= end_s:  # what happens after the trace is not known
                yield from (
                    Foretold(now_s, horizon_s, chance(lease, horizon_s), ends_s[key] > now_s + horizon_s)
                    for key, lease in live.items()
                )


def _news(intervals: Iterable[IdleInterval]) -> Iterator[tuple[float, bool, Lease]]:
    """(when, whether it ended, lease) by time, with the cohorts of a running scheduler; the intervals are sorted."""
    news: list[tuple[float, bool, Lease]] = []
    cohort, first_s = "", float("-inf")
    for epoch, interval in enumerate(intervals, start=1):
        if interval.start_s - first_s > COHORT_WINDOW_S:
            cohort, first_s = f"@{interval.start_s:.3f}", interval.start_s
        key = LeaseKey(interval.node, epoch)
        lease = Lease(key, "", LeaseState.READY, (), "", interval.start_s, cohort)
        news += [(interval.start_s, False, lease), (interval.end_s, True, lease)]
    yield from sorted(news, key=_by_time)


def _by_time(news: tuple[float, bool, Lease]) -> tuple[float, bool, str, int]:
    at_s, has_ended, lease = news
    return at_s, has_ended, lease.key.node, lease.key.epoch
