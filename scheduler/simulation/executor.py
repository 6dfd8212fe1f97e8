"""The executor's twin: plays agents, sites and jobs on a manual clock, in one process, the same way every time.

It is driven from both sides. The loop calls the executor port; whoever plays the owners (a trace, a test) calls
`owner_lends`, `owner_reclaims` and `kill`. What happens then goes into the loop's inbox as events, at once or when
its time has come:

    while (t := min(next of the trace, twin.next_s())) is not None:
        clock.advance_to(t); twin.play(t); loop.turn(t)
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.clock import Clock
from scheduler.domain import events
from scheduler.domain.cluster import Device, Lease, LeaseKey, Site
from scheduler.domain.jobs import Job, RescaleCosts
from scheduler.domain.plan import Assign
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


@dataclass(slots=True)
class _NodeTwin:
    """A node and its agent."""

    site: str
    devices: tuple[Device, ...]
    epoch: int = 0
    alive: bool = True
    connected: bool = True
    joined: bool = False
    spare: bool = False
    grace_s: float = 0.0
    expected_end_s: float | None = None
    reclaimed_s: float | None = None
    deadline_s: float = 0.0
    cause: str = ""


@dataclass(order=True, slots=True)
class _Due:
    at_s: float
    number: int
    act: Callable[[], None] = field(compare=False)
    what: object = field(default=None, compare=False)  # several waits for one thing can be called off together


class TwinExecutor:
    """See the module.

    `warmup_s` passes from `join` until a node is ready. `costs` says how long a job stands still; `work` what a job's
    work is (endless at one sample a second and worker by default).
    """

    def __init__(
        self,
        clock: Clock,
        post: Post,
        warmup_s: float = 0.0,
        costs: RescaleCosts | None = None,
        work: Callable[[Job], Work] = lambda job: Work(),
    ) -> None:
        self._clock = clock
        self._post = post
        self._warmup_s = warmup_s
        self._costs = costs or RescaleCosts()
        self._work = work
        self._nodes: dict[str, _NodeTwin] = {}
        self._jobs: dict[str, JobTwin] = {}
        self._due: list[_Due] = []
        self._number = 0
        self._unsaid: dict[str, list[events.Event]] = {}  # site that is away -> what it has to say
        self._facts: dict[str, dict[tuple[object, ...], events.Event]] = {}  # site -> newest of each thing it said

    # --- time --------------------------------------------------------------------------------------------------

    def next_s(self) -> float | None:
        """When something happens next by itself."""
        while self._due and self._due[0].act is _nothing:
            heapq.heappop(self._due)
        return self._due[0].at_s if self._due else None

    def play(self, now_s: float) -> None:
        """Let everything happen that is due."""
        while self._due and self._due[0].at_s <= now_s:
            heapq.heappop(self._due).act()

    def _later(self, delay_s: float, act: Callable[[], None], what: object = None) -> None:
        self._number += 1
        heapq.heappush(self._due, _Due(self._clock.now_s() + delay_s, self._number, act, what))

    def _call_off(self, what: object) -> None:
        for due in self._due:
            if due.what == what:
                due.act = _nothing

    def _event(self, kind: type[events.Event], **fields: object) -> events.Event:
        self._number += 1
        return kind(at_s=self._clock.now_s(), cause_id=f"twin-{self._number}", **fields)

    def _agent_says(self, node: str, kind: type[events.Event], /, **fields: object) -> None:
        """An agent says what it has to say, or nobody hears it."""
        if self._nodes[node].connected:
            self._post(self._event(kind, **fields))

    def _site_says(self, site: str, kind: type[events.Event], /, **fields: object) -> None:
        """A site says what it has to say, if need be after it has connected again."""
        event = self._event(kind, **fields)
        if site in self._unsaid:
            self._unsaid[site].append(event)
            return
        self._post(event)
        if kind in _SAID_AGAIN:
            subject = tuple(fields.get(name) for name in _SAID_AGAIN[kind])
            facts = self._facts.setdefault(site, {})
            facts.pop(subject, None)
            facts[subject] = event

    # --- the owners' side --------------------------------------------------------------------------------------

    def open_site(self, site: str) -> None:
        """A site connects, says again what may have been lost with the last session, and then what it could not say."""
        connected = self._event(
            events.SiteConnected,
            site=site,
            instance=f"{site}-twin",
            ray_address=f"{site}:6379",
            ray_token="twin",
            ray_version="twin",
        )
        recent = [e for e in self._facts.get(site, {}).values() if e.at_s >= self._clock.now_s() - UNCERTAIN_S]
        for event in (connected, *recent, *self._unsaid.pop(site, ())):
            self._post(event)

    def drop_site(self, site: str) -> None:
        """A site's session breaks; its work goes on."""
        if site not in self._unsaid:
            self._site_says(site, events.SiteDisconnected, site=site, instance=f"{site}-twin")
            self._unsaid[site] = []

    def reconnect(self) -> None:
        """The scheduler was away: every site and every living agent connects to it again."""
        for site in sorted({twin.site for twin in self._nodes.values()} - self._unsaid.keys()):
            self.open_site(site)
        for node, twin in sorted(self._nodes.items()):
            if twin.alive and twin.connected:
                self._hello(node)

    def add_node(self, node: str, site: str, devices: tuple[Device, ...]) -> None:
        """A node's agent connects; its owner uses it."""
        self._nodes[node] = _NodeTwin(site, devices)
        self._hello(node)

    def drop_agent(self, node: str) -> None:
        """An agent's stream breaks; what runs on the node goes on."""
        self._agent_says(node, events.AgentDisconnected, node=node, instance=f"{node}-twin")
        self._nodes[node].connected = False

    def return_agent(self, node: str) -> None:
        """A living agent connects again."""
        twin = self._nodes[node]
        if twin.alive and not twin.connected:
            twin.connected = True
            self._hello(node)

    def _hello(self, node: str) -> None:
        twin = self._nodes[node]
        self._agent_says(
            node,
            events.AgentConnected,
            node=node,
            site=twin.site,
            instance=f"{node}-twin",
            address=node,
            devices=twin.devices,
            epoch=twin.epoch,
        )
        if twin.reclaimed_s is not None:
            self._say_reclaimed(node)
        elif twin.spare:
            self._report(node)

    def owner_lends(self, node: str, grace_s: float = 0.0, expected_end_s: float | None = None) -> None:
        """The node's owner has nothing for it. A node that was killed comes back first."""
        twin = self._nodes[node]
        twin.spare, twin.grace_s, twin.expected_end_s = True, grace_s, expected_end_s
        if twin.alive:
            self._report(node)
            return
        twin.alive, twin.connected, twin.epoch, twin.joined = True, True, 0, False
        self._hello(node)

    def _report(self, node: str) -> None:
        twin = self._nodes[node]
        self._agent_says(
            node,
            events.NodeReported,
            node=node,
            instance=f"{node}-twin",
            epoch=twin.epoch,
            spare_devices=tuple(d.id for d in twin.devices) if twin.spare else (),
            source="twin",
            reason="idle" if twin.spare else "busy",
            grace_s=twin.grace_s,
            expected_end_s=twin.expected_end_s,
        )

    def owner_reclaims(self, node: str, grace_s: float = 0.0, cause: str = "owner") -> None:
        """The node's owner wants it back; at the deadline whatever runs there is killed."""
        twin = self._nodes[node]
        twin.spare = False
        if not twin.epoch:
            self._report(node)
            return
        if twin.reclaimed_s is not None:
            return
        key = LeaseKey(node, twin.epoch)
        twin.reclaimed_s = self._clock.now_s()
        twin.deadline_s, twin.cause = twin.reclaimed_s + grace_s, cause
        self._say_reclaimed(node)
        self._later(grace_s, lambda: self._free(key, "reclaimed"), key)

    def _say_reclaimed(self, node: str) -> None:
        twin = self._nodes[node]
        self._agent_says(
            node,
            events.NodeReclaimed,
            lease=LeaseKey(node, twin.epoch),
            deadline_s=twin.deadline_s,
            grace_s=twin.deadline_s - (twin.reclaimed_s or 0.0),
            cause=twin.cause,
        )

    def kill(self, node: str) -> None:
        """The node dies without a word; its site notices at once."""
        twin = self._nodes[node]
        key = LeaseKey(node, twin.epoch)
        twin.alive, twin.joined, twin.spare = False, False, False
        self._call_off(key)
        self.drop_agent(node)
        if twin.epoch:
            self._lose_workers(key)
            self._site_says(twin.site, events.NodeGone, lease=key)
        twin.epoch, twin.reclaimed_s = 0, None

    def _free(self, key: LeaseKey, cause: str) -> None:
        """The agent stops the raylet, and with it whatever still runs."""
        twin = self._nodes[key.node]
        if twin.epoch != key.epoch:
            return
        self._call_off(key)
        killed = self._lose_workers(key)
        now_s, reclaimed_s = self._clock.now_s(), twin.reclaimed_s
        twin.epoch, twin.joined, twin.reclaimed_s = 0, False, None
        free_s = now_s - reclaimed_s if reclaimed_s is not None else 0.0
        said = "reclaimed" if reclaimed_s is not None else cause
        self._agent_says(key.node, events.NodeLeft, lease=key, cause=said, free_s=free_s, killed=killed)

    def epoch_of(self, node: str) -> int:
        """The lease that the node's agent knows of, 0 without one."""
        return self._nodes[node].epoch

    # --- the executor port -------------------------------------------------------------------------------------

    def grant(self, lease: Lease) -> None:
        """See `Executor`."""
        twin = self._nodes.get(lease.key.node)
        if twin and twin.connected and twin.epoch == 0:
            twin.epoch = lease.key.epoch

    def join(self, lease: Lease, site: Site) -> None:
        """See `Executor`."""
        twin = self._nodes.get(lease.key.node)
        if twin and twin.connected and twin.epoch == lease.key.epoch and not twin.joined:
            twin.joined = True
            self._agent_says(lease.key.node, events.RayletStarted, lease=lease.key)
            ready = functools.partial(self._site_says, lease.site, events.NodeReady, lease=lease.key)
            self._later(self._warmup_s, ready, lease.key)

    def assign(self, job: Job, step: Assign, leases: tuple[Lease, ...], lost_workers: tuple[str, ...]) -> None:
        """See `Executor`."""
        if job.site in self._unsaid:
            return
        twin = self._jobs.setdefault(job.id, JobTwin(job.id, job.site, self._work(job)))
        now_s = self._clock.now_s()
        if step.assignment.revision <= twin.revision or twin.is_over:
            self._repeat(twin)
            return
        missing = {s.worker for s in step.assignment.workers if self._nodes[s.lease.node].epoch != s.lease.epoch}
        gained, changed = twin.take_up(step, now_s, missing)
        if changed or not twin.is_stalled:
            stall_s = self._costs.up_s if gained else self._costs.down_s
            self._stall(twin, step.cause, stall_s if twin.workers and changed else 0.0)

    def end(self, job: Job, cause: str) -> None:
        """See `Executor`."""
        if job.site in self._unsaid:
            return
        twin = self._jobs.setdefault(job.id, JobTwin(job.id, job.site, self._work(job)))
        self._finish(twin, "cancelled")

    def leave(self, lease: Lease, cause: str) -> None:
        """See `Executor`."""
        twin = self._nodes.get(lease.key.node)
        if twin and twin.connected:
            self._free(lease.key, "released")

    def reclaim(self, lease: Lease, grace_s: float, cause: str) -> None:
        """See `Executor`."""
        twin = self._nodes.get(lease.key.node)
        if twin and twin.connected and twin.epoch == lease.key.epoch:
            self.owner_reclaims(lease.key.node, grace_s, cause)

    def forget(self, key: LeaseKey, site: str) -> None:
        """See `Executor`."""
        self._lose_workers(key)

    def runs(self, job: str, worker: str) -> bool:
        """Whether the site runs this worker now."""
        return job in self._jobs and worker in self._jobs[job].workers

    def lose_worker(self, job: str, worker: str) -> None:
        """A worker dies alone."""
        twin = self._jobs[job]
        key = twin.workers[worker]
        twin.drop(worker, self._clock.now_s())
        self._site_says(twin.site, events.WorkerChanged, job=job, worker=worker, lease=key, state="lost")
        self._stall(twin, "loss", self._costs.down_s)

    # --- jobs --------------------------------------------------------------------------------------------------

    def _stall(self, twin: JobTwin, cause: str, stall_s: float) -> None:
        """The job stands still, and then runs as its newest revision says. A newer stall replaces a running one."""
        self._call_off(twin.id)
        twin.is_stalled = True
        twin.stalled_s = self._clock.now_s()
        self._later(stall_s, lambda: self._reach(twin, cause), twin.id)

    def _reach(self, twin: JobTwin, cause: str) -> None:
        now_s = self._clock.now_s()
        came, left = twin.reach(now_s)
        for worker, lease in came:
            self._site_says(twin.site, events.WorkerChanged, job=twin.id, worker=worker, lease=lease, state="running")
        for worker, lease in left:
            self._site_says(twin.site, events.WorkerChanged, job=twin.id, worker=worker, lease=lease, state="left")
        twin.last_stall_s = now_s - twin.stalled_s
        twin.last_cause = cause
        self._say_reached(twin)
        self._say_progress(twin)
        remaining_s = twin.remaining_s()
        if remaining_s is not None:
            self._later(remaining_s, lambda: self._finish(twin, "done"), twin.id)

    def _repeat(self, twin: JobTwin) -> None:
        if twin.is_over:
            self._site_says(twin.site, events.JobEnded, job=twin.id, outcome=twin.outcome)
        elif twin.is_steady:
            self._say_reached(twin)

    def _say_reached(self, twin: JobTwin) -> None:
        self._site_says(
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
            self._site_says(
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

    def _lose_workers(self, key: LeaseKey) -> int:
        """Workers on a lease die; what is left of their jobs regroups by itself. Returns how many died."""
        died = 0
        for twin in sorted(self._jobs.values(), key=lambda t: t.id):
            lost = twin.lose(key, self._clock.now_s())
            for worker in lost:
                self._site_says(twin.site, events.WorkerChanged, job=twin.id, worker=worker, lease=key, state="lost")
            if lost and not twin.is_over:
                self._stall(twin, "loss", self._costs.down_s)
            died += len(lost)
        return died

    def _finish(self, twin: JobTwin, outcome: str) -> None:
        self._call_off(twin.id)
        twin.finish(outcome, self._clock.now_s())
        self._site_says(twin.site, events.JobEnded, job=twin.id, outcome=outcome)


def _nothing() -> None:
    """What was called off."""
