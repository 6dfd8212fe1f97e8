"""The forecast learns how long idle nodes stay, and says so calibrated on days that it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.planning.forecast import PRIOR_HAZARD_PER_S, Forecast, IdleHistory
from scheduler.simulation.traces import read_trace

SUMMIT = Path(__file__).parents[3] / "shared" / "data" / "traces" / "summit-2021-02-days0-9.idle.csv.gz"

ages = st.floats(0, 1e6)


@given(
    ends=st.lists(st.tuples(ages, st.booleans()), max_size=50), age=ages, near=st.floats(0, 1e5), more=st.floats(0, 1e5)
)
def test_survival_is_a_chance_that_only_falls_with_time(
    ends: list[tuple[float, bool]], age: float, near: float, more: float
) -> None:
    history = IdleHistory()
    for at_s, (lasted_s, by_owner) in enumerate(ends):
        history.lease_ended(lasted_s, float(at_s), by_owner=by_owner)
    forecast = history.forecast()
    assert 0 <= float(forecast.survival(age, near + more)) <= float(forecast.survival(age, near)) <= 1
    assert float(forecast.survival(age, 0.0)) == 1
    assert 0 <= float(forecast.expected_use_s(age, near + 1)) <= near + 1 + 1e-6


def test_nothing_seen_means_the_prior() -> None:
    forecast = IdleHistory().forecast()
    assert float(forecast.survival(0, 1800)) == pytest.approx(np.exp(-PRIOR_HAZARD_PER_S * 1800))
    assert forecast == Forecast()


@given(mean_s=st.floats(100, 10_000), seed=st.integers(0, 2**32 - 1))
def test_it_recovers_a_constant_rate(mean_s: float, seed: int) -> None:
    history = IdleHistory()
    for lasted_s in np.random.default_rng(seed).exponential(mean_s, 3000):
        history.lease_ended(float(lasted_s), 0.0, by_owner=True)
    assert float(history.forecast().survival(0, mean_s)) == pytest.approx(np.exp(-1), abs=0.06)


def test_leases_that_we_gave_back_and_leases_still_live_are_censored() -> None:
    """1,000 leases of 100 s each, of which the owner ended a tenth: one end in 1,000 s of exposure."""
    history = IdleHistory()
    for index in range(1000):
        history.lease_ended(100.0, 0.0, by_owner=index % 10 == 0)
    censored = history.forecast()
    counted_as_ends = IdleHistory()
    for _ in range(1000):
        counted_as_ends.lease_ended(100.0, 0.0, by_owner=True)
    assert float(censored.survival(0, 100)) > 0.85 > float(counted_as_ends.forecast().survival(0, 100))
    assert float(history.forecast([100.0] * 1000).survival(0, 100)) > float(censored.survival(0, 100))


def test_what_was_long_ago_fades() -> None:
    history = IdleHistory(half_life_s=3600)
    for _ in range(1000):
        history.lease_ended(50.0, 0.0, by_owner=True)
    for _ in range(1000):
        history.lease_ended(5000.0, 20 * 3600.0, by_owner=True)
    assert float(history.forecast().survival(0, 1000)) > 0.85


@pytest.mark.skipif(not SUMMIT.exists(), reason="the Summit trace is not on this machine (../shared/data)")
def test_calibrated_on_days_not_seen() -> None:
    """On days 5-9 of Summit each prediction, made of what had ended by then, is on average within 0.05."""
    intervals = read_trace(SUMMIT).intervals
    start_s = np.array([i.start_s for i in intervals])
    end_s = np.array([i.end_s for i in intervals])
    ended = sorted(zip(end_s, end_s - start_s, strict=True), reverse=True)
    history = IdleHistory()
    predicted: dict[int, list[np.ndarray]] = {60: [], 300: [], 900: [], 3600: []}
    observed: dict[int, list[np.ndarray]] = {60: [], 300: [], 900: [], 3600: []}
    for now_s in np.arange(5 * 86_400, 9.9 * 86_400, 300.0):
        while ended and ended[-1][0] <= now_s:
            at_s, lasted_s = ended.pop()
            history.lease_ended(float(lasted_s), float(at_s), by_owner=True)
        live = (start_s <= now_s) & (end_s > now_s)
        ages_s = now_s - start_s[live]
        forecast = history.forecast(ages_s)
        for horizon_s in predicted:
            predicted[horizon_s].append(forecast.survival(ages_s, horizon_s))
            observed[horizon_s].append(end_s[live] > now_s + horizon_s)
    for horizon_s in predicted:
        mean_predicted = np.concatenate(predicted[horizon_s]).mean()
        assert mean_predicted == pytest.approx(np.concatenate(observed[horizon_s]).mean(), abs=0.05)
