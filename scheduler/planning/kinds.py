"""How fast a job goes on each kind of device.

All rates of a job are in one unit: that of one worker on the fastest kind that the job could have. So it goes where it
goes fastest compared with the other jobs, and with one kind of device the unit is its one-worker rate there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from itertools import permutations

from scheduler.domain.jobs import Job, KindCurve
from scheduler.planning.curves import DEFAULT_EXPONENT, Curve, Rates, relative_rates
from scheduler.planning.remembered import Remembered

Speeds = Mapping[tuple[str, str], float]
"""How much faster the first kind of device is than the second, by the jobs that were measured on both."""


def speeds_of(jobs: Iterable[Job]) -> Speeds:
    """Geometric means over the jobs."""
    logs: dict[tuple[str, str], list[float]] = {}
    for job in jobs:
        for one, other in permutations(_measured(job).items(), 2):
            logs.setdefault((one[0], other[0]), []).append(math.log(_one_worker(one[1]) / _one_worker(other[1])))
    return {pair: math.exp(sum(found) / len(found)) for pair, found in logs.items()}


def rates_on(job: Job, kind: str, kinds: Collection[str], max_width: int, speeds: Speeds) -> Rates:
    """Rates at widths 0..max_width [max_width + 1] on a kind of device. `kinds`: all that the job could have.

    A kind on which it was not measured is taken to scale like the best known of the others, and to be as much faster
    as other jobs found it; as fast, if no job knows.
    """
    measured = _measured(job)
    if not measured:
        return relative_rates(job.curve, max_width)
    like = kind if kind in measured else max(sorted(measured), key=lambda k: len(measured[k]))
    one = {k: _speed(k, measured, speeds) for k in {kind, *kinds}}
    share = one[kind] / max(one.values())
    rates = relative_rates(measured[like], max_width)
    return rates if share == 1.0 else rates * share


def _speed(kind: str, measured: Mapping[str, Curve], speeds: Speeds) -> float:
    """Samples per second of one worker."""
    if kind in measured:
        return _one_worker(measured[kind])
    like = max(sorted(measured), key=lambda k: len(measured[k]))
    return _one_worker(measured[like]) * speeds.get((kind, like), 1.0)


_known: Remembered[dict[str, Curve]] = Remembered(20_000)


def _measured(job: Job) -> dict[str, Curve]:
    return _known.of(job.kind_curves, None, lambda: _points_of(job.kind_curves)) if job.kind_curves else {}


def _points_of(curves: Iterable[KindCurve]) -> dict[str, Curve]:
    by_kind = {c.kind: tuple((p.width, p.rate) for p in c.points if p.width > 0 and p.rate > 0) for c in curves}
    return {kind: points for kind, points in by_kind.items() if points}


def _one_worker(points: Curve) -> float:
    """As `relative_rates` has it: below the first measured width the default curve holds."""
    width, rate = points[0]
    return rate / float(width**DEFAULT_EXPONENT)
