"""Replays a trace through the real control loop: the same inventory, planner and commit, on a manual clock.

Time jumps from instant to instant. At each one all events are taken in, then planned for once, and again as long as
the plan itself brings news; then the instant is over, and stalls begin.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from scheduler.clock import ManualClock
from scheduler.control_loop import ControlLoop, Planner
from scheduler.domain import events
from scheduler.domain.jobs import RescaleCosts
from scheduler.domain.plan import Plan, Snapshot
from scheduler.inventory import Inventory
from scheduler.inventory.ticks import LOOK_EVERY_S
from scheduler.simulation.forgetful_store import ForgetfulStore
from scheduler.simulation.job_clock import JobClock, Physics
from scheduler.simulation.job_mix import MixJob
from scheduler.simulation.served_model import ServedModel
from scheduler.simulation.trace_executor import TraceExecutor
from scheduler.simulation.traces import Trace

TICK_EVERY_S = 600.0
"""How often time is noticed when nothing happens."""

MOST_ROUNDS = 10
"""Plans at one instant. A planner that wants more goes round in circles; it is counted, and asked again later."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How to replay. `parallel` jobs at most run at a time; `endless` ones are the first so many, for ever."""

    parallel: int = 10
    endless: bool = False
    grace_s: float = 0.0
    physics: Physics = field(default_factory=Physics)
    curves_known: bool = True
    site_of: Callable[[str], str] = lambda node: "trace"


@dataclass(slots=True)
class JobRecord:
    """What became of one job."""

    job: MixJob
    clock: JobClock
    arrived_s: float
    admitted_s: float
    ended_s: float | None = None
    model: ServedModel | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """What happened."""

    trace: Trace
    start_s: float
    end_s: float
    jobs: tuple[JobRecord, ...]
    never_admitted: tuple[tuple[float, MixJob], ...]  # with the time of their arrival
    planner_s: tuple[float, ...]  # seconds of each call of the planner
    wall_s: float
    instants: int
    unsettled: int  # instants at which the planner did not come to rest
    log_rows: int


@dataclass(slots=True)
class _Instant:
    ends: list[tuple[str, float]] = field(default_factory=list)  # (node, notice)
    starts: list[str] = field(default_factory=list)


class Replayer:
    """One replay. `plan` may be any planner; `progress` is told the trace's time now and then; the planner and the
    whole are timed by `stopwatch`."""

    def __init__(
        self,
        trace: Trace,
        mix: Sequence[MixJob],
        planner: Planner,
        setting: Setting,
        progress: Callable[[float], None] = lambda now_s: None,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._trace = trace
        self._setting = setting
        self._progress = progress
        self._planner = planner
        self._stopwatch = stopwatch
        self._start_s = trace.intervals[0].start_s if trace.intervals else 0.0
        self._instants = deque(sorted(_instants(trace, setting.grace_s).items()))
        self._queue = deque(sorted(_arrivals(mix, setting, self._start_s), key=lambda a: (a[0], a[1].id)))
        self._running: dict[str, JobRecord] = {}
        self._records: list[JobRecord] = []
        self._planner_s: list[float] = []
        self._clock = ManualClock(self._start_s)
        self._store = ForgetfulStore()
        self._news = 0
        self._unsettled = 0
        self._executor = TraceExecutor(self._clock, self._post, reports_rates=not setting.curves_known)
        self._inventory = Inventory(book_every_s=float("inf"))
        self._loop = ControlLoop(self._inventory, self._store, self._executor, self._clock, self._plan)

    @property
    def inventory(self) -> Inventory:
        """The scheduler's state, for checks."""
        return self._inventory

    def run(self) -> Replay:
        """Play the trace to its end."""
        began_s, count = self._stopwatch(), 0
        for site in sorted({self._setting.site_of(i.node) for i in self._trace.intervals}):
            self._executor.open_site(site)
        for at_s in self._times():
            self._clock.advance_to(at_s)
            self._play(at_s)
            count += 1
            self._progress(at_s)
        end_s = max(self._trace.end_s, self._start_s)
        for record in self._records:
            record.clock.finish(end_s if record.ended_s is None else record.ended_s)
            if record.model:
                record.model.advance_to(end_s)
        return Replay(
            trace=self._trace,
            start_s=self._start_s,
            end_s=end_s,
            jobs=tuple(self._records),
            never_admitted=tuple(self._queue),
            planner_s=tuple(self._planner_s),
            wall_s=self._stopwatch() - began_s,
            instants=count,
            unsettled=self._unsettled,
            log_rows=self._store.rows,
        )

    # --- time --------------------------------------------------------------------------------------------------

    def _times(self) -> Iterator[float]:
        """The instants at which something happens, as long as the trace lasts."""
        while self._instants:
            now_s = self._clock.now_s()
            times = [self._instants[0][0], now_s + (LOOK_EVERY_S if self._someone_waits() else TICK_EVERY_S)]
            due_s = self._executor.next_s()
            times += [due_s] if due_s is not None else []
            times += [self._queue[0][0]] if self._queue and len(self._running) < self._setting.parallel else []
            yield max(now_s, min(times))

    def _someone_waits(self) -> bool:
        return any(not record.clock.warm_s for record in self._running.values())

    def _play(self, now_s: float) -> None:
        self._post(events.Tick(at_s=now_s, cause_id="tick"))
        self._executor.play(now_s)
        self._owners_act(now_s)
        self._settle(now_s, plan=False)
        for _ in range(MOST_ROUNDS):
            self._admit(now_s)
            self._settle(now_s, plan=True)
            self._executor.close()
            self._executor.play(now_s)
            if not self._news:
                return
        self._unsettled += 1

    def _settle(self, now_s: float, plan: bool) -> None:
        """Turns until nothing more is said."""
        for _ in range(MOST_ROUNDS):
            self._news = 0
            self._loop.turn(now_s, plan=plan)
            if not self._news:
                return

    def _owners_act(self, now_s: float) -> None:
        while self._instants and self._instants[0][0] <= now_s:
            _, instant = self._instants.popleft()
            for node, notice_s in sorted(instant.ends):
                self._executor.take_back(node, notice_s)
            for node in sorted(instant.starts):
                self._executor.lend(node, self._setting.site_of(node), self._setting.grace_s)

    # --- jobs --------------------------------------------------------------------------------------------------

    def _admit(self, now_s: float) -> None:
        """Jobs that have arrived are submitted while there is room."""
        while self._queue and self._queue[0][0] <= now_s and len(self._running) < self._setting.parallel:
            arrived_s, job = self._queue.popleft()
            clock = JobClock(job, self._setting.physics)
            self._executor.add_job(job.id, clock)
            record = JobRecord(job, clock, arrived_s, now_s, model=self._executor.model_of(job.id))
            self._running[job.id] = record
            self._records.append(record)
            self._post(_submitted(job, clock, now_s, self._setting.curves_known))

    def _post(self, event: events.Event) -> None:
        self._news += 1
        if isinstance(event, events.JobEnded) and event.job in self._running:
            self._running.pop(event.job).ended_s = event.at_s
        self._loop.post(event)

    def _plan(self, snapshot: Snapshot) -> Plan:
        began_s = self._stopwatch()
        plan = self._planner(snapshot)
        self._planner_s.append(self._stopwatch() - began_s)
        return plan


def _instants(trace: Trace, grace_s: float) -> dict[float, _Instant]:
    """What owners do, by time. A node is asked back so long before its interval ends that it is free by then.

    An interval no longer than the notice is not lent at all: its owner wants it back as soon as it begins.
    """
    instants: dict[float, _Instant] = {}
    for interval in trace.intervals:
        if interval.end_s - interval.start_s > grace_s:
            instants.setdefault(interval.start_s, _Instant()).starts.append(interval.node)
            instants.setdefault(interval.end_s - grace_s, _Instant()).ends.append((interval.node, grace_s))
    return instants


def _arrivals(mix: Sequence[MixJob], setting: Setting, start_s: float) -> Iterator[tuple[float, MixJob]]:
    if setting.endless:
        for job in mix[: setting.parallel]:
            yield start_s, replace(job, samples=None)
    else:
        for job in mix:
            yield start_s + job.submitted_s, job


def _submitted(job: MixJob, clock: JobClock, now_s: float, curve_known: bool) -> events.JobSubmitted:
    return events.JobSubmitted(
        at_s=now_s,
        cause_id="replay",
        job=job.id,
        name=job.id,
        kind=job.kind,
        user="replay",
        request_id="",
        spec_json="{}",
        needs=job.needs,
        weight=job.weight,
        device_kinds=(),
        shape=job.shape,
        copies=job.copies,
        curve=job.curve if curve_known else (),
        costs=RescaleCosts(clock.up_s, clock.down_s),
    )
