"""Jobs as the page shows them: plain values, ready for JSON. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scheduler.domain.jobs import Job, JobState
from scheduler.domain.reasons import Reason
from scheduler.status_page.traces import Traces, traces_loss

MAX_ENDED_JOBS = 30
MAX_JOBS = 300
MAX_RESCALES = 12
MAX_UNPLACED = 200

STATE_ORDER = (JobState.RUNNING, JobState.STARTING, JobState.ENDING, JobState.PARKED, JobState.QUEUED)


@dataclass(frozen=True, slots=True)
class RescaleView:
    """One rescale of a job."""

    at_s: float
    cause: str
    width: int
    stall_s: float
    steps_lost: int


@dataclass(frozen=True, slots=True)
class JobView:
    """One job. `curve` is its loss if `curve_is_loss`, else its rate."""

    id: str
    name: str
    kind: str
    user: str
    site: str
    state: str
    width: int
    min_width: int
    max_width: int
    roles: tuple[tuple[str, int, int, int], ...]  # (role, now, min, max)
    step: int
    total: int
    loss: float | None
    rate: float | None
    rate_unit: str
    eta_s: float | None
    submitted_s: float
    started_s: float | None
    ended_s: float | None
    message: str
    endpoint: str
    output: str
    curve: tuple[float, ...]
    curve_is_loss: bool
    scaling: tuple[tuple[int, float], ...]
    rescales: tuple[RescaleView, ...]
    steps_lost: int
    losses_by_reclaim: int


@dataclass(frozen=True, slots=True)
class UnplacedView:
    """A job that does not run, or not at its full width, and why."""

    job: str
    name: str
    state: str
    code: str
    message: str
    remedy: str


def shown_jobs(jobs: Iterable[Job]) -> list[Job]:
    """Live jobs, running ones first, then the last that ended; at most `MAX_JOBS`."""
    everything = list(jobs)
    live = [job for job in everything if job.state.is_live]
    ended = [job for job in everything if not job.state.is_live]
    live.sort(key=lambda job: (STATE_ORDER.index(job.state), job.submitted_s, job.id))
    ended.sort(key=lambda job: (-(job.ended_s or 0.0), job.id))
    return [*live[: MAX_JOBS - MAX_ENDED_JOBS], *ended[:MAX_ENDED_JOBS]]


def job_counts(jobs: Iterable[Job]) -> dict[str, int]:
    """How many jobs there are in each state."""
    return dict(sorted(Counter(job.state.value for job in jobs).items()))


def unplaced(jobs: Mapping[str, Job], reasons: Mapping[str, Reason]) -> tuple[UnplacedView, ...]:
    """Live jobs without all they want: those that do not run first, then in the order they were submitted."""
    waiting = [jobs[job] for job in reasons if job in jobs and jobs[job].state.is_live]
    waiting.sort(key=lambda job: (job.width > 0, job.submitted_s, job.id))
    return tuple(_unplaced(job, reasons[job.id]) for job in waiting[:MAX_UNPLACED])


def _unplaced(job: Job, reason: Reason) -> UnplacedView:
    return UnplacedView(job.id, job.name, job.state.value, reason.code, reason.message, reason.remedy)


def job_view(job: Job, traces: Traces) -> JobView:
    """One job."""
    trace = traces.of(job.id)
    progress = job.progress
    return JobView(
        id=job.id,
        name=job.name,
        kind=job.kind.value,
        user=job.user,
        site=job.site,
        state=job.state.value,
        width=job.width,
        min_width=job.min_width,
        max_width=job.max_width,
        roles=_roles(job),
        step=progress.step,
        total=progress.total,
        loss=finite(progress.loss) if traces_loss(job) and progress.step else None,
        rate=finite(progress.rate) if progress.rate_unit and job.state is JobState.RUNNING else None,
        rate_unit=progress.rate_unit,
        eta_s=_eta_s(job, trace.steps_per_s),
        submitted_s=job.submitted_s,
        started_s=job.started_s,
        ended_s=job.ended_s,
        message=job.message,
        endpoint=job.endpoint,
        output=job.output,
        curve=tuple(float(f"{point:.4g}") for point in trace.points),
        curve_is_loss=traces_loss(job),
        scaling=tuple((width, rate) for width, rate in job.curve if math.isfinite(rate)),
        rescales=tuple(
            RescaleView(r.at_s, r.cause, r.width, finite(r.stall_s) or 0.0, r.steps_lost)
            for r in job.rescales[-MAX_RESCALES:]
        ),
        steps_lost=job.steps_lost,
        losses_by_reclaim=job.losses_by_reclaim,
    )


def _roles(job: Job) -> tuple[tuple[str, int, int, int], ...]:
    have = Counter(slot.role for slot in job.assignment.workers) if job.assignment else Counter()
    return tuple((need.role.value, have[need.role], need.min, need.max) for need in job.needs)


def _eta_s(job: Job, steps_per_s: float) -> float | None:
    left = job.progress.total - job.progress.step
    if job.state is not JobState.RUNNING or left < 0 or not job.progress.total or steps_per_s <= 0:
        return None
    return round(left / steps_per_s)


def finite(value: float) -> float | None:
    """The value, or None for what JSON cannot say."""
    return value if math.isfinite(value) else None
