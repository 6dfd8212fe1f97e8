"""What a job's loss or rate did so far, and how fast its steps go, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from scheduler.domain.jobs import Job, JobKind

MAX_POINTS = 64
RATE_WINDOW_S = 120.0


class Trace:
    """One job's curve. Invariant: at most `MAX_POINTS` points, evenly spaced in samples taken."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._stride = 1
        self._taken = 0
        self._last = (-1, math.nan)
        self._steps: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, step: int, value: float) -> None:
        """Take the newest progress; one that repeats the last changes nothing."""
        if self._last == (step, value):
            return
        self._last = (step, value)
        self._add_step(now_s, step)
        if math.isfinite(value) and self._taken % self._stride == 0:
            self.points.append(value)
        self._taken += 1
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self._stride *= 2

    def _add_step(self, now_s: float, step: int) -> None:
        while self._steps and self._steps[-1][1] > step:  # work was lost and is done again
            self._steps.pop()
        if not self._steps or self._steps[-1][1] < step:
            self._steps.append((now_s, step))
        while len(self._steps) > 2 and self._steps[0][0] < now_s - RATE_WINDOW_S:
            self._steps.popleft()

    @property
    def steps_per_s(self) -> float:
        """Over the last two minutes; 0 before a second step was seen."""
        if len(self._steps) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._steps[0], self._steps[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


class Traces:
    """Curves of the jobs that are shown."""

    def __init__(self) -> None:
        self._by_job: dict[str, Trace] = {}

    def add(self, now_s: float, jobs: Iterable[Job]) -> None:
        """Take every job's newest progress and forget jobs that are gone."""
        kept: dict[str, Trace] = {}
        for job in jobs:
            trace = kept[job.id] = self._by_job.get(job.id) or Trace()
            if job.progress.step or job.progress.rate:
                trace.add(now_s, job.progress.step, job.progress.loss if traces_loss(job) else job.progress.rate)
        self._by_job = kept

    def of(self, job: str) -> Trace:
        """The job's curve, empty if nothing is known of it."""
        return self._by_job.get(job) or Trace()


def traces_loss(job: Job) -> bool:
    """Whether the job's curve is its loss, else it is its rate."""
    return job.kind is JobKind.TRAIN
