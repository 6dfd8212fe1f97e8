"""The executor's twin: plays agents, sites and jobs on a manual clock, in one process, the same way every time.

It is driven from both sides. The loop calls the executor port; whoever plays the owners (a trace, a test) calls
`owner_lends`, `owner_reclaims` and `kill`. What happens then goes into the loop's inbox as events, at once or when
its time has come:

    while (t := min(next of the trace, twin.next_s())) is not None:
        clock.advance_to(t); twin.play(t); loop.turn(t)
"""

from __future__ import annotations

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


@dataclass(slots=True)
class _NodeTwin:
    """A node and its agent."""

    site: str
    devices: tuple[Device, ...]
    epoch: int = 0
    alive: bool = True
    joined: bool = False
    reclaimed_s: float | None = None


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

    def _say(self, kind: type[events.Event], **fields: object) -> None:
        self._number += 1
        self._post(kind(at_s=self._clock.now_s(), cause_id=f"twin-{self._number}", **fields))

    # --- the owners' side --------------------------------------------------------------------------------------

    def open_site(self, site: str) -> None:
        """A site connects."""
        self._say(
            events.SiteConnected,
            site=site,
            instance=f"{site}-twin",
            ray_address=f"{site}:6379",
            ray_token="twin",
            ray_version="twin",
        )

    def reconnect(self) -> None:
        """The scheduler was away: every site and every living agent connects to it again."""
        for site in sorted({twin.site for twin in self._nodes.values()}):
            self.open_site(site)
        for node, twin in sorted(self._nodes.items()):
            if twin.alive:
                self._hello(node)

    def add_node(self, node: str, site: str, devices: tuple[Device, ...]) -> None:
        """A node's agent connects; its owner uses it."""
        self._nodes[node] = _NodeTwin(site, devices)
        self._hello(node)

    def _hello(self, node: str) -> None:
        twin = self._nodes[node]
        self._say(
            events.AgentConnected,
            node=node,
            site=twin.site,
            instance=f"{node}-twin",
            address=node,
            devices=twin.devices,
            epoch=twin.epoch,
        )

    def owner_lends(self, node: str, grace_s: float = 0.0, expected_end_s: float | None = None) -> None:
        """The node's owner has nothing for it. A node that was killed comes back first."""
        twin = self._nodes[node]
        if not twin.alive:
            twin.alive, twin.epoch, twin.joined = True, 0, False
            self._hello(node)
        self._report(node, tuple(d.id for d in twin.devices), grace_s, expected_end_s)

    def _report(self, node: str, spare: tuple[str, ...], grace_s: float, expected_end_s: float | None) -> None:
        self._say(
            events.NodeReported,
            node=node,
            instance=f"{node}-twin",
            epoch=self._nodes[node].epoch,
            spare_devices=spare,
            source="twin",
            reason="idle" if spare else "busy",
            grace_s=grace_s,
            expected_end_s=expected_end_s,
        )

    def owner_reclaims(self, node: str, grace_s: float = 0.0, cause: str = "owner") -> None:
        """The node's owner wants it back; at the deadline whatever runs there is killed."""
        twin = self._nodes[node]
        if not twin.epoch:
            self._report(node, (), 0.0, None)
            return
        now_s, key = self._clock.now_s(), LeaseKey(node, twin.epoch)
        if twin.reclaimed_s is not None:
            return
        twin.reclaimed_s = now_s
        self._say(events.NodeReclaimed, lease=key, deadline_s=now_s + grace_s, grace_s=grace_s, cause=cause)
        self._later(grace_s, lambda: self._free(key, "reclaimed"), key)

    def kill(self, node: str) -> None:
        """The node dies without a word; its site notices at once."""
        twin = self._nodes[node]
        key = LeaseKey(node, twin.epoch)
        twin.alive, twin.joined = False, False
        self._call_off(key)
        self._say(events.AgentDisconnected, node=node, instance=f"{node}-twin")
        if twin.epoch:
            self._lose_workers(key)
            self._say(events.NodeGone, lease=key)
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
        self._say(events.NodeLeft, lease=key, cause=said, free_s=free_s, killed=killed)

    # --- the executor port -------------------------------------------------------------------------------------

    def grant(self, lease: Lease) -> None:
        """See `Executor`."""
        twin = self._nodes.get(lease.key.node)
        if twin and twin.alive and twin.epoch == 0:
            twin.epoch = lease.key.epoch

    def join(self, lease: Lease, site: Site) -> None:
        """See `Executor`."""
        twin = self._nodes.get(lease.key.node)
        if twin and twin.alive and twin.epoch == lease.key.epoch and not twin.joined:
            twin.joined = True
            self._say(events.RayletStarted, lease=lease.key)
            self._later(self._warmup_s, lambda: self._say(events.NodeReady, lease=lease.key), lease.key)

    def assign(self, job: Job, step: Assign, leases: tuple[Lease, ...], lost_workers: tuple[str, ...]) -> None:
        """See `Executor`."""
        twin = self._jobs.setdefault(job.id, JobTwin(job.id, self._work(job)))
        now_s = self._clock.now_s()
        if step.assignment.revision <= twin.revision:
            self._repeat(twin)
            return
        missing = {s.worker for s in step.assignment.workers if self._nodes[s.lease.node].epoch != s.lease.epoch}
        gained, changed = twin.take_up(step, now_s, missing)
        if changed or not twin.is_stalled:
            stall_s = self._costs.up_s if gained else self._costs.down_s
            self._stall(twin, step.cause, stall_s if twin.workers and changed else 0.0)

    def end(self, job: Job, cause: str) -> None:
        """See `Executor`."""
        twin = self._jobs.setdefault(job.id, JobTwin(job.id, self._work(job)))
        self._finish(twin, "cancelled")

    def leave(self, lease: Lease, cause: str) -> None:
        """See `Executor`."""
        if lease.key.node in self._nodes:
            self._free(lease.key, "released")

    def reclaim(self, lease: Lease, grace_s: float, cause: str) -> None:
        """See `Executor`."""
        twin = self._nodes.get(lease.key.node)
        if twin and twin.epoch == lease.key.epoch:
            self.owner_reclaims(lease.key.node, grace_s, cause)

    def forget(self, key: LeaseKey, site: str) -> None:
        """See `Executor`."""
        self._lose_workers(key)

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
            self._say(events.WorkerChanged, job=twin.id, worker=worker, lease=lease, state="running")
        for worker, lease in left:
            self._say(events.WorkerChanged, job=twin.id, worker=worker, lease=lease, state="left")
        twin.last_stall_s = now_s - twin.stalled_s
        twin.last_cause = cause
        self._say_reached(twin)
        self._say_progress(twin)
        remaining_s = twin.remaining_s()
        if remaining_s is not None:
            self._later(remaining_s, lambda: self._finish(twin, "done"), twin.id)

    def _repeat(self, twin: JobTwin) -> None:
        if twin.is_steady:
            self._say_reached(twin)

    def _say_reached(self, twin: JobTwin) -> None:
        self._say(
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
            self._say(
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
                self._say(events.WorkerChanged, job=twin.id, worker=worker, lease=key, state="lost")
            if lost:
                self._stall(twin, "loss", self._costs.down_s)
            died += len(lost)
        return died

    def _finish(self, twin: JobTwin, outcome: str) -> None:
        self._call_off(twin.id)
        twin.finish(self._clock.now_s())
        self._say(events.JobEnded, job=twin.id, outcome=outcome)


def _nothing() -> None:
    """What was called off."""
