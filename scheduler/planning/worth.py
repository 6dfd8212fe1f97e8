"""What a width is worth to a job: the planner's whole objective, in useful node-seconds over the horizon.

    worth(n) = importance * (max(horizon_s - stall_s(n), LEAST * horizon_s) * useful(n) - regret_s(n) * useful(kept))

    useful(n)     the job's rate at width n in units of its one-worker rate. What it needs to be in time for a deadline
                  counts more; so does its narrowest width, if it has waited for long
    stall_s(n)    how long it stands still first: its up cost if it gains workers; its down cost if it only loses some,
                  or has just lost some; else what is left of the stall that it is in. So growth during a stall is
                  nearly free, and after a loss costs only what it takes longer than the loss
    regret_s(n)   giving up workers that it could keep: sooner or later it grows back, and stands still for that; and a
                  measured rate is only so sure; the surer, the more often it was measured
    importance    weight * 2**priority * fairness

The horizon is how long the decision is likely to stand (see `tempo`). Allocation maximises the sum over all jobs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.domain.jobs import Job, JobKind, JobState, RescaleCosts
from scheduler.planning.curves import Rates

Values = NDArray[np.float64]

LEAST = 0.02
"""Share of the horizon that counts however long a stall is: nodes may stay for longer than is to be expected. So a job
whose start takes longer than the horizon gets what nobody else wants, and its turn once it has waited for long."""

NOISE = 0.07
"""Share of a rate that may be error of a single measurement: no workers change hands for less."""

SURE = 20
"""More measurements of a rate than these make it no surer: older ones fade."""

PATIENCE_S = 3600.0
"""A job that has waited so long counts twice, five times after twice the time, as far as its narrowest width goes.
Sooner nobody is sent away for it: a turn costs a stall, and nodes come and go so often that most get theirs without."""

FIRST = 0.01
"""Until then it counts so much more: of those who wait, who has waited longest is first."""

TURN_S = 3600.0
"""For so long who got workers for having waited keeps what that gained, and counts as if it waited on: nobody who has
waited for less sends it away."""

IN_TIME = 3.0
"""How often more that part of a job's rate counts without which it misses its deadline."""

FAIR = 0.5
"""A user who has had all that was to be had of late, as one of several, counts so much to the power of users."""


@dataclass(frozen=True, slots=True)
class Position:
    """How a job stands when its widths are judged."""

    kept: int  # workers that can stay
    current: int  # workers that it is assigned
    stall_left_s: float = 0.0  # what is left of the stall that it is in
    noise: float = NOISE  # share of its rates that may be error

    @property
    def is_disturbed(self) -> bool:
        """Whether it stands still, or must, whatever is decided."""
        return self.kept < self.current or self.stall_left_s > 0


def width_values(useful: Rates, at: Position, costs: RescaleCosts, horizon_s: float, importance: float) -> Values:
    """What each width is worth [len(useful)]."""

    def left_s(stall_s: float) -> float:
        return max(horizon_s - stall_s, LEAST * horizon_s)

    staying_s = costs.down_s if at.kept < at.current else at.stall_left_s
    values: Values = left_s(costs.up_s) * useful
    values[at.kept : at.kept + 1] = left_s(staying_s) * useful[at.kept : at.kept + 1]
    if at.kept:
        values[: at.kept] = left_s(costs.down_s) * useful[: at.kept]
        values[: at.kept] -= regret(useful, at, costs, horizon_s)
    values *= importance
    return values


def regret(useful: Rates, at: Position, costs: RescaleCosts, horizon_s: float) -> float:
    """What it costs sooner or later to have given up workers that the job could keep; nothing if it is disturbed."""
    if at.is_disturbed or not at.kept:
        return 0.0
    return (costs.up_s + at.noise * horizon_s) * float(useful[min(at.kept, len(useful) - 1)])


def noise_of(job: Job) -> float:
    """Share of the job's rate at its width that may be error: of a submitted rate as of one measured once. The margin
    also pays for what is not weighed, such as the warm-up of a worker on a node that changes hands."""
    counts = [point.count for curve in job.kind_curves for point in curve.points if point.width == job.width]
    return NOISE / math.sqrt(min(SURE, max(counts, default=1)))


def importance(job: Job, fairness: float) -> float:
    """How much the job's work counts."""
    return job.weight * 2.0**job.priority * fairness


def patience(job: Job, now_s: float) -> float:
    """How often more its narrowest width counts: more the longer it waits; none for a job that has run for long."""
    since_s = max(0.0, now_s - job.turned_s)
    if job.width and (since_s >= TURN_S or job.waited_s < PATIENCE_S):
        return 0.0
    waited_s = since_s + (job.waited_s if job.width else 0.0)
    return (waited_s / PATIENCE_S) ** 2 if waited_s >= PATIENCE_S else FIRST * waited_s / PATIENCE_S


def has_its_turn(job: Job, horizon_s: float) -> bool:
    """Whether the job gets its floor before the rest is weighed: served models, and who has never run (others shrink
    for it). It keeps its turn until it runs: else what was given to it would be taken away again at once; and so does
    who starts again, if that takes longer than the horizon."""
    starts_slowly = job.state is JobState.STARTING and job.costs.up_s >= horizon_s
    return job.kind is JobKind.SERVE or job.started_s is None or starts_slowly


def fairness_of(users: dict[str, float]) -> dict[str, float]:
    """How much each user's work counts, by what they have had of late: 1 for nothing, `FAIR` for an even share."""
    total = sum(users.values())
    if total <= 0:
        return dict.fromkeys(users, 1.0)
    return {user: FAIR ** (len(users) * used / total) for user, used in users.items()}


def useful_rates(job: Job, rates: Rates, floor: int, now_s: float, in_time: float) -> Rates:
    """The rates, with what waiting and a deadline make of them.

    The rate at the narrowest width counts more by the job's patience, what it needs to be `in_time`, `IN_TIME` times.
    """
    useful, of_waiting = rates, patience(job, now_s)
    if of_waiting:
        useful = useful + of_waiting * np.minimum(rates, rates[min(floor, len(rates) - 1)])
    if job.deadline_s is not None and job.deadline_s > now_s:
        useful = useful + IN_TIME * np.minimum(rates, in_time)
    return useful


def rate_in_time(job: Job, rates: Rates, now_s: float) -> float:
    """The rate with which the job is just in time, judged by how fast it was on average; all haste if unknown.

    `rates`: where it is.
    """
    left_s = left_at_pace_s(job, now_s)
    if left_s is None or job.deadline_s is None:
        return float("inf")
    return float(left_s / (job.deadline_s - now_s) * rates[min(max(1, job.width), len(rates) - 1)])


def left_at_pace_s(job: Job, now_s: float) -> float | None:
    """How long its work would take yet if it went on as fast as it was on average; None if unknown."""
    done, started_s = job.progress, job.started_s
    if not done.step or not done.total or started_s is None or now_s <= started_s:
        return None
    return max(0.0, done.total / done.step - 1) * (now_s - started_s)
