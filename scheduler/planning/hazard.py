"""The hazard of a lease's end by its age, for one lease at a time (see `forecast` for arrays)."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

from scheduler.planning.forecast import AGE_EDGES_S

_EDGES_S: list[float] = AGE_EDGES_S.tolist()


class Hazard:
    """A rate for each range of `AGE_EDGES_S`."""

    def __init__(self, per_s: tuple[float, ...]) -> None:
        self._per_s = per_s
        spans = (rate * (end - start) for rate, start, end in zip(per_s, _EDGES_S, _EDGES_S[1:], strict=False))
        self._total = [0.0, *accumulate(spans)]

    def until(self, age_s: float) -> float:
        """Ends to be expected of a lease up to this age."""
        index = min(bisect_right(_EDGES_S, age_s) - 1, len(self._per_s) - 1)
        return self._total[index] + self._per_s[index] * (age_s - _EDGES_S[index])


@lru_cache(maxsize=64)
def hazard_of(per_s: tuple[float, ...]) -> Hazard:
    """The hazard with these rates: asked for at every plan, and the same until a forecast is made anew."""
    return Hazard(per_s)
