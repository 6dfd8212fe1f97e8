"""How fast a job goes at each width, in units of one worker's rate, so that jobs can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rates = NDArray[np.float64]

DEFAULT_EXPONENT = 0.9
"""Rate of an unmeasured job: width ** this. Concave, so that widths are shared evenly, and hopeful enough to try."""

NEVER_FLAT = 0.02
"""Least gain of one more worker: an idle node harvests nothing, and single measurements are noisy. Enough to pay for a
rescale of two seconds at width 3 within the planner's horizon, so that a job grows back onto an idle node."""


def relative_rates(curve: Sequence[tuple[int, float]], max_width: int) -> Rates:
    """Rates at widths 0..max_width [max_width + 1], rate 1 at width 1, each more worker worth `NEVER_FLAT` at least.

    Piecewise linear through the measured points `(width, rate)`; outside them like the default curve, scaled to meet
    the nearest point. Points without a positive width and rate are left out.
    """
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
