"""The shared-out value is the optimum where it says so, and never beyond its bound; patience opens only a turn."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.planning.allocation import Demand, allocate
from scheduler.planning.tempo import Tempo
from scheduler.simulation.knapsack import best_widths

VALUES = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=12)


@given(st.lists(VALUES, min_size=1, max_size=7), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_the_same_optimum_as_the_plain_programme_and_the_bound_holds(jobs: list[list[float]], capacity: int) -> None:
    found = allocate([Demand(1, np.array(values), 0.0) for values in jobs], capacity)
    values = [np.array([0.0, *of_job]) for of_job in jobs]
    best = sum(v[n] for v, n in zip(values, best_widths(values, capacity), strict=True))
    assert found is not None
    assert abs(found.value - best) <= 1e-7
    assert best - 1e-7 <= found.bound
    assert sum(found.widths) <= capacity


def test_changes_at_one_instant_are_one() -> None:
    once, often = Tempo(), Tempo()
    for at_s in (0.0, 100.0, 200.0):
        once.changed(at_s)
        for _ in range(5):
            often.changed(at_s)
    assert once.gap_s == often.gap_s
