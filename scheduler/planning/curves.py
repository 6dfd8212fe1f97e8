"""How fast a job goes at each width, in units of one worker's rate, so that jobs can be compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scheduler.planning.remembered import Remembered

Rates = NDArray[np.float64]

DEFAULT_EXPONENT = 0.9
"""Rate of an unmeasured job: width ** this. Concave, so that widths are shared evenly, and hopeful enough to try."""

NEVER_FLAT = 0.02
"""Least gain of one more worker: an idle node harvests nothing, and single measurements are noisy. Enough to pay for a
rescale of two seconds at width 3 within the planner's horizon, so that a job grows back onto an idle node."""


Curve = tuple[tuple[int, float], ...]
"""Measured points: (width, rate)."""

_known: Remembered[Rates] = Remembered(20_000)


def relative_rates(curve: Curve, max_width: int) -> Rates:
    """Rates at widths 0..max_width [max_width + 1], rate 1 at width 1, each more worker worth `NEVER_FLAT` at least.

    Piecewise linear through the measured points; outside them like the default curve, scaled to meet the nearest
    point. Points without a positive width and rate are left out. What is returned cannot be written to: a job's rates
    are asked for at every plan, and are the same until it is measured again.
    """
    return _known.of(curve, max_width, lambda: _frozen(_relative_rates(curve, max_width)))


def _frozen(rates: Rates) -> Rates:
    rates.setflags(write=False)
    return rates


def _relative_rates(curve: Curve, max_width: int) -> Rates:
    widths = np.arange(max_width + 1, dtype=np.float64)
    default: Rates = widths**DEFAULT_EXPONENT
    points = sorted((width, rate) for width, rate in curve if width > 0 and rate > 0)
    if not points:
        return default
    at = np.array([p[0] for p in points], dtype=np.float64)
    rate = np.array([p[1] for p in points])
    rates = np.interp(widths, at, rate)
    below, above = widths < at[0], widths > at[-1]
    rates[below] = rate[0] * default[below] / at[0] ** DEFAULT_EXPONENT
    rates[above] = rate[-1] * default[above] / at[-1] ** DEFAULT_EXPONENT
    one: float = rates[1] if max_width >= 1 else 1.0
    return np.asarray(np.maximum.accumulate(rates / one - NEVER_FLAT * widths) + NEVER_FLAT * widths)
