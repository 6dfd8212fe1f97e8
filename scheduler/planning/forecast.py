"""How long idle nodes stay idle: Kaplan-Meier by age of the idle interval, censored, decayed, updated online.

A lease that has lasted `a` seconds ends within the next ones at a rate (its hazard) that depends on `a`: most idle
intervals are short, and one that has become old tends to grow older. The history counts, for each range of ages, how
many leases ended there and how long leases stood there; their quotient is the hazard, and the exponential of its
negative integral the chance to survive. Leases that are still live, or were given back by ourselves, count with the
time they stood and no end (censoring). Old observations fade with a half-life.

Source: E. L. Kaplan, P. Meier, "Nonparametric Estimation from Incomplete Observations", JASA 53 (1958), in its
piecewise-exponential form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

AGE_EDGES_S: Floats = np.array(
    [0, 30, 60, 90, 120, 180, 240, 300, 420, 600, 900, 1200, 1800, 2700, 3600, 5400, 7200, 10_800, 21_600, 43_200, 1e9]
)
"""Ages at which the hazard may change; 20 ranges, finer where most idle intervals end."""

_EDGES_S = AGE_EDGES_S.tolist()
_SPANS_S = np.diff(AGE_EDGES_S)

PRIOR_HAZARD_PER_S = 2.0 / 3600
"""What is believed of a site of which nothing was seen: a node stays half an hour."""

PRIOR_ENDS = 3.0
"""How many observed ends that belief weighs, in each range of ages."""

HORIZONS_S = (60.0, 300.0, 900.0, 3600.0)
"""How far ahead a forecast is judged."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of `asked` nodes, the share that was to last `horizon_s` by the forecast, and the share that did."""

    horizon_s: float
    predicted: float
    observed: float
    asked: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one site's history says of ages to come. `hazard_per_s` has one rate for each range of `AGE_EDGES_S`."""

    hazard_per_s: tuple[float, ...] = (PRIOR_HAZARD_PER_S,) * (len(AGE_EDGES_S) - 1)

    def survival(self, age_s: ArrayLike, horizon_s: ArrayLike) -> Floats:
        """Chance that a lease of this age is still there `horizon_s` later. Shapes broadcast."""
        now_s: Floats = np.asarray(age_s, dtype=np.float64)
        later_s: Floats = np.asarray(now_s + np.asarray(horizon_s, dtype=np.float64))
        cumulative = self._cumulative_hazard()
        later = np.interp(later_s, AGE_EDGES_S, cumulative)
        now = np.interp(now_s, AGE_EDGES_S, cumulative)
        return np.asarray(np.exp(now - later))

    def expected_use_s(self, age_s: ArrayLike, horizon_s: float, points: int = 24) -> Floats:
        """Expected seconds that a lease of this age lasts, counted up to `horizon_s` (integral of the survival)."""
        at_s = np.concatenate([[0.0], np.geomspace(min(5.0, horizon_s / points), horizon_s, points - 1)])
        curve = self.survival(np.asarray(age_s, dtype=float)[..., None], at_s)
        return np.asarray(np.trapezoid(curve, at_s, axis=-1))

    def _cumulative_hazard(self) -> Floats:
        return np.concatenate([[0.0], np.cumsum(np.asarray(self.hazard_per_s) * np.diff(AGE_EDGES_S))])


class IdleHistory:
    """Counts of one site, fed by every lease that ends. Invariant: ends and exposure are never negative."""

    def __init__(self, half_life_s: float = 86_400.0) -> None:
        self._half_life_s = half_life_s
        self._ends = np.zeros(len(AGE_EDGES_S) - 1)
        self._exposure_s = np.zeros(len(AGE_EDGES_S) - 1)
        self._decayed_to_s: float | None = None

    def lease_ended(self, age_s: float, at_s: float, *, by_owner: bool) -> None:
        """A lease ended at this age: by its owner, or (`by_owner` false) by ourselves, which tells no end."""
        self._decay(at_s)
        last = _range_of(age_s)
        self._exposure_s[:last] += _SPANS_S[:last]
        self._exposure_s[last] += age_s - _EDGES_S[last]
        if by_owner:
            self._ends[last] += 1.0

    def forecast(self, live_ages_s: Iterable[float] = ()) -> Forecast:
        """What the counts say now; leases that are still live count with the ages that they have reached."""
        exposure_s = self._exposure_s + _exposure_s(np.fromiter(live_ages_s, dtype=float))
        hazard = (self._ends + PRIOR_ENDS) / (exposure_s + PRIOR_ENDS / PRIOR_HAZARD_PER_S)
        return Forecast(tuple(hazard.tolist()))

    def _decay(self, at_s: float) -> None:
        if self._decayed_to_s is not None and at_s > self._decayed_to_s:
            kept = 0.5 ** ((at_s - self._decayed_to_s) / self._half_life_s)
            self._ends *= kept
            self._exposure_s *= kept
        self._decayed_to_s = at_s if self._decayed_to_s is None else max(at_s, self._decayed_to_s)


def _exposure_s(ages_s: Floats) -> Floats:
    """Seconds that leases of these ages stood in each range: (leases,) -> (ranges,)."""
    spans = np.clip(ages_s[:, None], AGE_EDGES_S[:-1], AGE_EDGES_S[1:]) - AGE_EDGES_S[:-1]
    return np.asarray(spans.sum(axis=0))


def _range_of(age_s: float) -> int:
    return min(max(bisect_right(_EDGES_S, age_s) - 1, 0), len(_EDGES_S) - 2)
