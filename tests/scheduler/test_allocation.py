"""The dynamic programme against every combination there is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.cluster import LeaseKey
from scheduler.domain.jobs import (
    Assignment,
    Job,
    JobKind,
    JobState,
    KindCurve,
    Point,
    RescaleCosts,
    Role,
    RoleNeed,
    WorkerSlot,
)
from scheduler.planning.allocation import Demand, allocate
from scheduler.planning.curves import relative_rates
from scheduler.planning.worth import NOISE, SURE, Position, noise_of, width_values

VALUES = st.lists(st.floats(-10, 100, allow_nan=False), min_size=1, max_size=5)
DEMANDS = st.lists(
    st.builds(
        lambda first, values, stopped: Demand(first, np.array(values), stopped),
        st.integers(1, 3),
        VALUES,
        st.one_of(st.none(), st.floats(-5, 5)),
    ),
    max_size=4,
)


def _options(demand: Demand) -> list[tuple[int, float]]:
    options = [(demand.first + i, float(value)) for i, value in enumerate(demand.values)]
    return options if demand.stopped is None else [(0, demand.stopped), *options]


def _best_by_trying(demands: list[Demand], capacity: int) -> float | None:
    totals = [
        sum(value for _, value in combination)
        for combination in itertools.product(*map(_options, demands))
        if sum(width for width, _ in combination) <= capacity
    ]
    return max(totals, default=None)


@given(DEMANDS, st.integers(0, 12))
@settings(max_examples=400, deadline=None)
def test_no_combination_is_better(demands: list[Demand], capacity: int) -> None:
    best, found = _best_by_trying(demands, capacity), allocate(demands, capacity)
    if best is None or found is None:
        assert best is None
        assert found is None
        return
    assert abs(found.value - best) < 1e-9
    assert sum(found.widths) <= capacity
    worth = [dict(_options(demand))[width] for demand, width in zip(demands, found.widths, strict=True)]
    assert abs(sum(worth) - found.value) < 1e-9


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0.01, 1000)), max_size=5),
    st.integers(1, 30),
)
def test_rates_rise_and_start_at_one(curve: list[tuple[int, float]], most: int) -> None:
    rates = relative_rates(tuple(curve), most)
    assert len(rates) == most + 1
    assert rates[0] >= 0
    assert np.all(np.diff(rates) > 0)


def test_rates_go_through_measured_points() -> None:
    rates = relative_rates(((1, 10.0), (3, 20.0)), 4)
    assert np.allclose(rates[[1, 2, 3]], [1.0, 1.5, 2.0], atol=0.1)


def test_rates_are_in_units_of_the_jobs_own_one_node_rate() -> None:
    """A job of small samples, a thousand times as many a second, counts no more than one of large ones."""
    curve = ((1, 10.0), (3, 20.0), (8, 41.0))
    assert np.allclose(relative_rates(tuple((n, 1000 * rate) for n, rate in curve), 8), relative_rates(curve, 8))


def test_starts_growths_and_losses_are_charged() -> None:
    rates, costs = np.arange(6.0), RescaleCosts(up_s=10.0, down_s=4.0)
    start = width_values(rates, Position(0, 0), costs, 100.0, 1.0)
    assert start[2] == 90 * 2
    running = width_values(rates, Position(3, 3), costs, 100.0, 1.0)
    assert running[3] == 300
    assert running[4] == 90 * 4
    assert running[2] == 96 * 2 - (10 + NOISE * 100) * 3, "it will want to grow back"
    struck = width_values(rates, Position(2, 3), costs, 100.0, 1.0)
    assert struck[2] == 96 * 2, "the loss itself must be paid"
    assert struck[3] == 90 * 3, "and growth only beyond it"
    slow = width_values(rates, Position(0, 0), RescaleCosts(up_s=500.0), 100.0, 1.0)
    assert slow[2] == pytest.approx(0.02 * 100 * 2), "nodes may stay for longer than is to be expected"
    stalled = width_values(rates, Position(3, 3, stall_left_s=7.0), costs, 100.0, 2.0)
    assert stalled[3] == 2 * 93 * 3
    assert stalled[2] == 2 * 96 * 2, "it stands still in any case"


def test_workers_change_hands_for_less_the_surer_a_rate_is() -> None:
    """Of three workers one goes to another job if it is worth more there than noise: a submitted rate has that of
    a single measurement, a measured one has the less the more often it was measured, but never none."""
    submitted = noise_of_rate(())
    once, often, always = (noise_of_rate((KindCurve("cpu", (Point(3, 3.0, count),)),)) for count in (1, 9, 10_000))
    assert submitted == once == NOISE == 3 * often
    assert often > always == noise_of_rate((KindCurve("cpu", (Point(3, 3.0, SURE),)),)) > 0
    assert [changes_hands(noise, 1.12) for noise in (always, often, once)] == [True, True, False]
    assert not changes_hands(always, 1.03)
    assert noise_of_rate((KindCurve("cpu", (Point(2, 2.0, 10_000),)),)) == NOISE, "elsewhere is not here"


def noise_of_rate(shown: tuple[KindCurve, ...]) -> float:
    """Of a job of three workers that was submitted with its curve and has been measured so since."""
    slots = tuple(WorkerSlot(f"w{n}", Role.TRAINER, LeaseKey(f"n{n}", 1), ("0",)) for n in range(3))
    job = Job("j", "j", JobKind.TRAIN, "ada", JobState.RUNNING, 0.0, "{}", (RoleNeed(Role.TRAINER, 1, 3),))
    return noise_of(replace(job, curve=((3, 3.0),), kind_curves=shown, assignment=Assignment("j", 1, slots)))


def changes_hands(noise: float, gain: float) -> bool:
    """Whether one of three workers goes to another job, where it is worth `gain` times as much."""
    costs = RescaleCosts(up_s=1.0, down_s=1.0)
    mine = width_values(np.arange(4.0), Position(3, 3, noise=noise), costs, 1000.0, 1.0)
    theirs = width_values(gain * np.arange(4.0), Position(1, 1), costs, 1000.0, 1.0)
    return bool(mine[2] + theirs[2] > mine[3] + theirs[1])
