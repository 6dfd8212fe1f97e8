"""The shared-out value is the optimum where it says so, and never beyond its bound; patience opens only a turn."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.cluster import Lease, LeaseKey, LeaseState
from scheduler.domain.plan import Outlook
from scheduler.inventory.past import SitePast
from scheduler.planning.allocation import Demand, allocate
from scheduler.planning.forecast import AGE_EDGES_S, Forecast
from scheduler.planning.tempo import Tempo, horizon_s, mean_life_s
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


@given(st.floats(1.0, 5000.0), st.floats(1.0, 5000.0), st.floats(20.0, 20_000.0), st.floats(20.0, 20_000.0))
def test_the_longer_nodes_stay_and_the_calmer_the_site_the_longer_is_the_horizon(
    gap_s: float, other_gap_s: float, life_s: float, other_life_s: float
) -> None:
    short = horizon_s(min(gap_s, other_gap_s), min(life_s, other_life_s))
    long = horizon_s(max(gap_s, other_gap_s), max(life_s, other_life_s))
    assert 30.0 <= short <= long * (1 + 1e-9)
    assert long <= max(30.0, max(gap_s, other_gap_s), max(life_s, other_life_s)) * 1.05


def test_each_site_has_the_horizon_that_its_own_past_gives() -> None:
    """Nobody sets it: where nodes come and go all the time, decisions stand for less long."""
    past, calm = SitePast(), SitePast()
    for number in range(200):
        lease = _lease(number, 30.0 * number)
        past.opened(lease.started_s)
        past.ended(lease, lease.started_s + 20.0, "owner")
    restless_s, calm_s = past.outlook("s", 6000.0, ()).horizon_s, calm.outlook("s", 6000.0, ()).horizon_s
    assert 30.0 <= restless_s < 0.2 * calm_s


FEW_STAY = Forecast(tuple(1 / 100 if age_s < 600 else 1 / 20_000 for age_s in AGE_EDGES_S[:-1]))
"""Of a site where most nodes are gone after some minutes, and the others stay."""


@given(st.lists(st.floats(0.0, 50_000.0), min_size=1, max_size=9), st.randoms())
def test_nodes_that_have_been_idle_for_long_last_longer_than_new_ones(ages_s: list[float], random: Random) -> None:
    life_s = mean_life_s(FEW_STAY, ages_s)
    assert mean_life_s(FEW_STAY, ()) == pytest.approx(100.0, rel=0.1)
    assert mean_life_s(FEW_STAY, ()) <= life_s * (1 + 1e-9)
    assert life_s <= 3600.0
    random.shuffle(ages_s)
    assert mean_life_s(FEW_STAY, ages_s) == life_s, "in any order"


def test_a_site_whose_nodes_have_stayed_decides_for_longer() -> None:
    """The same past, and nodes that are new or old."""
    young_s, old_s = (_outlook_of(age_s).horizon_s for age_s in (0.0, 7200.0))
    assert young_s < 0.75 * old_s


def _outlook_of(age_s: float) -> Outlook:
    past = SitePast()
    for number in range(300):
        gone = _lease(number, 20.0 * number)
        past.opened(gone.started_s)
        past.ended(gone, gone.started_s + 20.0, "owner")
    return past.outlook("s", 8000.0, [_lease(number, 8000.0 - age_s) for number in range(5)])


def _lease(number: int, started_s: float) -> Lease:
    return Lease(LeaseKey(f"n{number}", number + 1), "s", LeaseState.READY, (), "", started_s, "c")


def test_changes_at_one_instant_are_one() -> None:
    once, often = Tempo(), Tempo()
    for at_s in (0.0, 100.0, 200.0):
        once.changed(at_s)
        for _ in range(5):
            often.changed(at_s)
    assert once.gap_s == often.gap_s
