"""The shared-out value is the optimum where it says so, and never beyond its bound; patience opens only a turn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.cluster import Lease, LeaseKey, LeaseState
from scheduler.domain.jobs import RescaleCosts, Role, RoleNeed
from scheduler.domain.plan import Assign, Outlook
from scheduler.inventory.past import SitePast
from scheduler.planning.allocation import Demand, allocate
from scheduler.planning.forecast import AGE_EDGES_S, Forecast
from scheduler.planning.plan import plan
from scheduler.planning.tempo import Tempo, horizon_s, mean_life_s
from scheduler.simulation.knapsack import best_widths
from tests.scheduler.world import World

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


def life_s(mean_s: float) -> float:
    """Of new nodes at a site whose nodes stay so long on average."""
    return mean_life_s((1 / mean_s,) * len(Forecast().hazard_per_s), ())


@given(st.floats(1.0, 5000.0), st.floats(1.0, 5000.0), st.floats(20.0, 20_000.0), st.floats(20.0, 20_000.0))
def test_the_longer_nodes_stay_and_the_calmer_the_site_the_longer_is_the_horizon(
    gap_s: float, other_gap_s: float, mean_s: float, other_mean_s: float
) -> None:
    short = horizon_s(min(gap_s, other_gap_s), life_s(min(mean_s, other_mean_s)))
    long = horizon_s(max(gap_s, other_gap_s), life_s(max(mean_s, other_mean_s)))
    assert 30.0 <= short <= long * (1 + 1e-9)
    assert long <= max(30.0, max(gap_s, other_gap_s), max(mean_s, other_mean_s)) * 1.05


def test_each_site_has_the_horizon_that_its_own_past_gives() -> None:
    """Nobody sets it: where nodes come and go all the time, decisions stand for less long."""
    past, calm = SitePast(), SitePast()
    for number in range(200):
        lease = Lease(LeaseKey(f"n{number}", number + 1), "s", LeaseState.READY, (), "", 30.0 * number, "c")
        past.opened(lease.started_s)
        past.ended(lease, lease.started_s + 20.0, "owner")
    restless_s, calm_s = (_horizon_s(of.outlook("s", 6000.0, ())) for of in (past, calm))
    assert 30.0 <= restless_s < 0.2 * calm_s


def _horizon_s(outlook: Outlook) -> float:
    return horizon_s(outlook.gap_s, mean_life_s(outlook.hazard_per_s, ()))


FEW_STAY = tuple(1 / 100 if age_s < 600 else 1 / 20_000 for age_s in AGE_EDGES_S[:-1])
"""The hazard of a site where most nodes are gone after some minutes, and the others stay."""


@pytest.mark.parametrize(("idle_s", "width"), [(0.0, 1), (7200.0, 2)])
def test_a_node_that_has_been_idle_for_long_is_worth_a_stall_that_a_new_one_is_not(idle_s: float, width: int) -> None:
    world = World()
    world.add_site()
    world.add_nodes(2)
    world.submit(needs=(RoleNeed(Role.TRAINER, 1, 1),))
    world.run(10.0)
    snapshot = world.inventory.snapshot(world.clock.now_s())
    (job,) = snapshot.jobs
    wider = {"needs": (RoleNeed(Role.TRAINER, 1, 2),), "curve": ((1, 1.0), (2, 1.2)), "kind_curves": ()}
    snapshot = replace(
        snapshot,
        jobs=(replace(job, **wider, costs=RescaleCosts(60.0, 60.0)),),  # type: ignore[arg-type]
        leases=tuple(replace(lease, started_s=snapshot.now_s - idle_s) for lease in snapshot.leases),
        outlooks=(Outlook("s", 60.0, FEW_STAY),),
    )
    assert [step.assignment.width for step in plan(snapshot).steps if isinstance(step, Assign)] == [width][: width - 1]


@given(st.permutations([0.0, 0.1, 77.7, 1234.5, 40_000.0]))
def test_how_long_nodes_last_does_not_depend_on_their_order(ages_s: list[float]) -> None:
    assert mean_life_s(FEW_STAY, ages_s) == mean_life_s(FEW_STAY, sorted(ages_s))


def test_changes_at_one_instant_are_one() -> None:
    once, often = Tempo(), Tempo()
    for at_s in (0.0, 100.0, 200.0):
        once.changed(at_s)
        for _ in range(5):
            often.changed(at_s)
    assert once.gap_s == often.gap_s
