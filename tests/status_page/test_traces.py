"""Curves of jobs: bounded, and honest about speed when work is lost."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.jobs import Job, JobKind, JobState, Progress, Role, RoleNeed
from scheduler.status_page.traces import MAX_POINTS, Trace, Traces

JOB = Job("j1", "name", JobKind.TRAIN, "lin", JobState.RUNNING, 0.0, "{}", (RoleNeed(Role.TRAINER, 1, 4),))


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(-1e9, 1e9)), max_size=400))
def test_a_curve_stays_small_whatever_comes(progress: list[tuple[int, float]]) -> None:
    trace = Trace()
    for second, (step, value) in enumerate(progress):
        trace.add(float(second), step, value)
    assert len(trace.points) <= MAX_POINTS
    assert trace.steps_per_s >= 0
    assert set(trace.points) <= {value for _, value in progress}


def test_the_first_point_is_kept_and_the_order_too() -> None:
    trace = Trace()
    for step in range(1, 1001):
        trace.add(float(step), step, float(step))
    assert trace.points[0] == 1.0
    assert trace.points == sorted(trace.points)
    assert trace.points[-1] > 900


def test_speed_is_that_of_the_last_two_minutes() -> None:
    trace = Trace()
    for second in range(400):
        trace.add(float(second), second if second < 200 else 200 + 3 * (second - 200), 1.0)
    assert abs(trace.steps_per_s - 3.0) < 0.01


def test_steps_done_again_are_not_taken_for_speed() -> None:
    trace = Trace()
    for second, step in enumerate((10, 12, 14, 16, 8, 10)):
        trace.add(float(second), step, 1.0)
    assert 0 <= trace.steps_per_s <= 2.0


def test_a_loss_that_is_no_number_leaves_no_point() -> None:
    trace = Trace()
    trace.add(1.0, 1, float("nan"))
    trace.add(2.0, 2, float("inf"))
    trace.add(3.0, 3, 2.5)
    assert trace.points == [2.5]


def test_jobs_that_are_gone_are_forgotten() -> None:
    traces = Traces()
    traces.add(1.0, [replace(JOB, progress=Progress(step=1, loss=3.0))])
    assert traces.of("j1").points == [3.0]
    traces.add(2.0, [])
    assert traces.of("j1").points == []
