"""Sites on a manual clock: their sessions with the scheduler, and the jobs that they carry out."""

from __future__ import annotations

from collections.abc import Callable

from scheduler.domain import events
from scheduler.domain.cluster import LeaseKey
from scheduler.domain.jobs import Job, RescaleCosts
from scheduler.domain.plan import Assign
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.twin_jobs import JobTwin, Work

Post = Callable[[events.Event], None]

UNCERTAIN_S = 30.0
"""What a site said so shortly before its session broke may not have been stored, and is said again."""

_SAID_AGAIN: dict[type[events.Event], tuple[str, ...]] = {
    events.NodeReady: ("lease",),
    events.NodeGone: ("lease",),
    events.WorkerChanged: ("worker", "lease"),
    events.AssignmentReached: ("job",),
    events.JobEnded: ("job", "outcome"),
}
"""What a site says again, and which fields name the thing that a later word replaces an earlier one about."""


class SiteTwins:
    """All sites. What one has to say while it is away waits until it is back."""

    def __init__(self, agenda: Agenda, post: Post, costs: RescaleCosts, work: Callable[[Job], Work]) -> None:
        self._agenda = agenda
        self._post = post
        self._costs = costs
        self._work = work
        self._jobs: dict[str, JobTwin] = {}
        self._unsaid: dict[str, list[events.Event]] = {}  # site that is away -> what it has to say
        self._facts: dict[str, dict[tuple[object, ...], events.Event]] = {}  # site -> newest of each thing it said

    # --- sessions ----------------------------------------------------------------------------------------------

    def is_away(self, site: str) -> bool:
        """Whether the site's session is broken."""
        return site in self._unsaid

    def open(self, site: str) -> None:
        """A site connects, says again what may have been lost with the last session, and then what it could not say."""
        connected = self._agenda.event(
            events.SiteConnected,
            site=site,
            instance=f"{site}-twin",
            ray_address=f"{site}:6379",
            ray_token="twin",
            ray_version="twin",
        )
        since_s = self._agenda.now_s - UNCERTAIN_S
        recent = [event for event in self._facts.get(site, {}).values() if event.at_s >= since_s]
        for event in (connected, *recent, *self._unsaid.pop(site, ())):
            self._post(event)

    def drop(self, site: str) -> None:
        """A site's session breaks; its work goes on."""
        if not self.is_away(site):
            self.say(site, events.SiteDisconnected, site=site, instance=f"{site}-twin")
            self._unsaid[site] = []

    def say(self, to_say_at: str, kind: type[events.Event], /, **fields: object) -> None:
        """A site says what it has to say, if need be after it has connected again."""
        event = self._agenda.event(kind, **fields)
        if self.is_away(to_say_at):
            self._unsaid[to_say_at].append(event)
            return
        self._post(event)
        if kind in _SAID_AGAIN:
            subject = tuple(fields.get(name) for name in _SAID_AGAIN[kind])
            facts = self._facts.setdefault(to_say_at, {})
            facts.pop(subject, None)
            facts[subject] = event

    # --- what the scheduler wants ------------------------------------------------------------------------------

    def assign(self, job: Job, step: Assign, missing: set[str]) -> None:
        """Bring a job to an assignment, `missing` of whose workers have no node any more."""
        twin = self._twin(job)
        if step.assignment.revision <= twin.revision or twin.is_over:
            self._repeat(twin)
            return
        gained, changed = twin.take_up(step, self._agenda.now_s, missing)
        if changed or not twin.is_stalled:
            stall_s = self._costs.up_s if gained else self._costs.down_s
            self._stall(twin, step.cause, stall_s if twin.workers and changed else 0.0)

    def end(self, job: Job) -> None:
        """End a job."""
        self._finish(self._twin(job), "cancelled")

    def _twin(self, job: Job) -> JobTwin:
        return self._jobs.setdefault(job.id, JobTwin(job.id, job.site, self._work(job)))

    # --- what happens to workers -------------------------------------------------------------------------------

    def runs(self, job: str, worker: str) -> bool:
        """Whether this worker runs or starts now."""
        return job in self._jobs and worker in self._jobs[job].workers

    def running_on(self) -> list[LeaseKey]:
        """The lease of every worker that runs, starts or leaves now."""
        return [lease for twin in self._jobs.values() for lease in (*twin.workers.values(), *twin.leaving.values())]

    def lose_worker(self, job: str, worker: str) -> None:
        """A worker dies alone."""
        twin = self._jobs[job]
        key = twin.workers[worker]
        twin.drop(worker, self._agenda.now_s)
        self._say_worker(twin, worker, key, "lost")
        self._stall(twin, "loss", self._costs.down_s)

    def lose_workers(self, key: LeaseKey) -> int:
        """Workers on a lease die; what is left of their jobs regroups by itself. Returns how many died."""
        died = 0
        for _, twin in sorted(self._jobs.items()):
            lost = twin.lose(key, self._agenda.now_s)
            for worker in lost:
                self._say_worker(twin, worker, key, "lost")
            if lost:
                self._stall(twin, "loss", self._costs.down_s)
            died += len(lost)
        return died

    # --- jobs --------------------------------------------------------------------------------------------------

    def _stall(self, twin: JobTwin, cause: str, stall_s: float) -> None:
        """The job stands still, and then runs as its newest revision says. A newer stall replaces a running one."""
        self._agenda.call_off(twin.id)
        twin.is_stalled = True
        twin.stalled_s = self._agenda.now_s
        self._agenda.later(stall_s, lambda: self._reach(twin, cause), twin.id)

    def _reach(self, twin: JobTwin, cause: str) -> None:
        now_s = self._agenda.now_s
        came, left = twin.reach(now_s)
        for worker, lease in came:
            self._say_worker(twin, worker, lease, "running")
        for worker, lease in left:
            self._say_worker(twin, worker, lease, "left")
        twin.last_stall_s, twin.last_cause = now_s - twin.stalled_s, cause
        self._say_reached(twin)
        self._say_progress(twin)
        remaining_s = twin.remaining_s()
        if remaining_s is not None:
            self._agenda.later(remaining_s, lambda: self._finish(twin, "done"), twin.id)

    def _finish(self, twin: JobTwin, outcome: str) -> None:
        self._agenda.call_off(twin.id)
        if not twin.is_over:
            twin.finish(outcome, self._agenda.now_s)
        self._say_ended(twin)

    def _repeat(self, twin: JobTwin) -> None:
        if twin.is_over:
            self._say_ended(twin)
        elif twin.is_steady:
            self._say_reached(twin)

    def _say_worker(self, twin: JobTwin, worker: str, lease: LeaseKey, state: str) -> None:
        self.say(twin.site, events.WorkerChanged, job=twin.id, worker=worker, lease=lease, state=state)

    def _say_ended(self, twin: JobTwin) -> None:
        self.say(twin.site, events.JobEnded, job=twin.id, outcome=twin.outcome)

    def _say_reached(self, twin: JobTwin) -> None:
        self.say(
            twin.site,
            events.AssignmentReached,
            job=twin.id,
            revision=twin.revision,
            width=len(twin.workers),
            cause=twin.last_cause,
            stall_s=twin.last_stall_s,
            at_step=int(twin.done),
        )

    def _say_progress(self, twin: JobTwin) -> None:
        width = len(twin.workers)
        if width:
            self.say(
                twin.site,
                events.JobProgressed,
                job=twin.id,
                step=int(twin.done),
                total=int(twin.work.total or 0),
                loss=0.0,
                rate=twin.work.rate(width),
                rate_unit="samples/s",
                width=width,
            )
