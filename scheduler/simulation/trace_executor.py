"""The executor of a replay: plays agents and sites as a trace says, and jobs on their physical clocks.

The owners' side (`lend`, `take_back`) is driven by the trace, the executor port by the control loop. What happens goes
into the loop's inbox as events, at once or when `play` reaches their time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.clock import Clock
from scheduler.domain import events
from scheduler.domain.cluster import Device, Lease, LeaseKey, Site
from scheduler.domain.jobs import Job, JobKind, Role
from scheduler.domain.plan import Assign
from scheduler.simulation.job_clock import JobClock
from scheduler.simulation.served_model import ServedModel

DEVICE_BYTES = 2**40
"""Memory of a traced node's one device: the traces do not say, so that it never decides anything."""

DEVICES = (Device("node", "node", "a node of the trace", DEVICE_BYTES, 1),)


@dataclass(slots=True)
class _Placed:
    """A job at its site. Its clock holds the nodes of `workers` and `leaving`."""

    name: str
    clock: JobClock
    revision: int = 0
    cause: str = ""
    reached: bool = True
    workers: dict[str, LeaseKey] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)  # of them, those that were said to run
    leaving: dict[str, LeaseKey] = field(default_factory=dict)  # of a served model, until its successors have loaded
    model: ServedModel | None = None
    ticket: int = 0  # of the newest of its events to come; older ones are void


class TraceExecutor:
    """See the module. `clocks` says what is known of each job."""

    def __init__(self, clock: Clock, post: Callable[[events.Event], None], reports_rates: bool = False) -> None:
        self._clock = clock
        self._post = post
        self._reports_rates = reports_rates
        self._epochs: dict[str, int] = {}  # node -> the lease that it is under
        self._known: set[str] = set()  # nodes whose agents are connected
        self._holders: dict[str, tuple[str, str]] = {}  # node -> (job, worker) on it
        self._jobs: dict[str, _Placed] = {}
        self._touched: set[str] = set()
        self._due: list[tuple[float, int, str, str]] = []  # (when, ticket, what, job or node)
        self._tickets = itertools.count(1)

    def add_job(self, job: str, clock: JobClock) -> None:
        """A job is about to be submitted."""
        clock.now_s = self._clock.now_s()
        serves = clock.job.shape is not None and clock.job.kind is JobKind.SERVE
        model = ServedModel(clock.job.shape, _bytes_per_s(clock)) if clock.job.shape and serves else None
        self._jobs[job] = _Placed(job, clock, model=model)

    def model_of(self, job: str) -> ServedModel | None:
        """What became of a served model's experts."""
        return self._jobs[job].model

    # --- time --------------------------------------------------------------------------------------------------

    def next_s(self) -> float | None:
        """When something happens next by itself."""
        while self._due and self._is_void(self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def play(self, now_s: float) -> None:
        """Let everything happen that is due."""
        while self._due and self._due[0][0] <= now_s:
            due = heapq.heappop(self._due)
            if not self._is_void(due):
                self._happen(due[2], due[3])

    def _is_void(self, due: tuple[float, int, str, str]) -> bool:
        _, ticket, what, name = due
        if what == "leave":
            return self._epochs.get(name, 0) != ticket
        return self._jobs[name].ticket != ticket

    def _happen(self, what: str, name: str) -> None:
        match what:
            case "warm":
                self._touch(name)
            case "reach":
                self._reach(self._jobs[name])
            case "done":
                self._finish(self._jobs[name], "done")
            case "leave":
                self._go(name)

    def close(self) -> None:
        """This instant is over: stalls begin, and what follows from them is due at its time."""
        for name in sorted(self._touched):
            self._close(name, self._jobs[name])
        self._touched.clear()

    def _close(self, name: str, placed: _Placed) -> None:
        clock = placed.clock
        clock.close()
        placed.ticket = next(self._tickets)
        steady_s = clock.steady_s()
        if steady_s is None:
            warm_s = min(at_s for node, at_s in clock.warm_s.items() if node not in clock.joined)
            self._at(warm_s, placed.ticket, "warm", name)
        elif not placed.reached:
            reached_s = max(steady_s, placed.model.loaded_s()) if placed.model else steady_s
            self._at(reached_s, placed.ticket, "reach", name)
        done_s = clock.done_s()
        if done_s is not None:
            self._at(done_s, placed.ticket, "done", name)

    def _at(self, at_s: float, ticket: int, what: str, name: str) -> None:
        heapq.heappush(self._due, (at_s, ticket, what, name))

    def _touch(self, job: str) -> JobClock:
        """The job's clock, at the present instant; it is closed at the instant's end."""
        self._touched.add(job)
        clock = self._jobs[job].clock
        clock.advance_to(self._clock.now_s())
        return clock

    # --- the owners' side --------------------------------------------------------------------------------------

    def open_site(self, site: str) -> None:
        """The site process connects."""
        self._say(
            events.SiteConnected,
            site=site,
            instance=site,
            ray_address=f"{site}:6379",
            ray_token="replay",
            ray_version="replay",
        )

    def lend(self, node: str, site: str, grace_s: float) -> None:
        """The owner has nothing for the node."""
        if node not in self._known:
            self._known.add(node)
            self._say(
                events.AgentConnected, node=node, site=site, instance=node, address=node, devices=DEVICES, epoch=0
            )
        self._say(
            events.NodeReported,
            node=node,
            instance=node,
            epoch=0,
            spare_devices=("node",),
            source="trace",
            reason="idle",
            grace_s=grace_s,
        )

    def take_back(self, node: str, grace_s: float) -> None:
        """The owner wants the node, in `grace_s` at the latest."""
        epoch = self._epochs.get(node, 0)
        if grace_s <= 0:
            self._go(node)
        elif epoch:
            deadline_s = self._clock.now_s() + grace_s
            self._say(
                events.NodeReclaimed,
                lease=LeaseKey(node, epoch),
                deadline_s=deadline_s,
                grace_s=grace_s,
                cause="owner",
            )
            self._at(deadline_s, epoch, "leave", node)

    def _go(self, node: str) -> None:
        """The node is its owner's; what ran there is dead."""
        epoch = self._epochs.pop(node, 0)
        if not epoch:
            return
        killed = self._kill(node)
        key = LeaseKey(node, epoch)
        self._say(events.NodeLeft, lease=key, cause="reclaimed", free_s=0.0, killed=killed)

    def _kill(self, node: str) -> int:
        if node not in self._holders:
            return 0
        job, worker = self._holders.pop(node)
        self._touch(job).drop(node)
        placed = self._jobs[job]
        placed.workers.pop(worker, None)
        placed.leaving.pop(worker, None)
        placed.running.discard(worker)
        if placed.model:
            placed.model.lose(node, self._clock.now_s())
        return 1

    # --- the executor port -------------------------------------------------------------------------------------

    def grant(self, lease: Lease) -> None:
        """See `Executor`."""
        self._epochs[lease.key.node] = lease.key.epoch

    def join(self, lease: Lease, site: Site) -> None:
        """See `Executor`: the raylet is up at once; what a new node takes to be warm is on the jobs' clocks."""
        self._say(events.RayletStarted, lease=lease.key)
        self._say(events.NodeReady, lease=lease.key)

    def assign(self, job: Job, step: Assign, leases: tuple[Lease, ...], lost_workers: tuple[str, ...]) -> None:
        """See `Executor`. Workers that are left out go at once; those of a served model when others have loaded."""
        placed = self._jobs[job.id]
        if step.assignment.revision <= placed.revision:
            return
        placed.revision, placed.cause, placed.reached = step.assignment.revision, step.cause, False
        wanted = {s.worker: s.lease for s in step.assignment.workers if self._epochs.get(s.lease.node) == s.lease.epoch}
        clock = self._touch(job.id)
        placed.leaving |= {worker: key for worker, key in placed.workers.items() if worker not in wanted}
        if not placed.model:
            self._dismiss_leaving(placed)
        for worker, key in sorted(wanted.items()):
            self._holders[key.node] = (job.id, worker)
            clock.hold(key.node)
        placed.workers = wanted
        if placed.model:
            placed.model.assign(step.assignment, clock.warm_s, self._clock.now_s())

    def _dismiss_leaving(self, placed: _Placed) -> None:
        for worker, key in sorted(placed.leaving.items()):
            del self._holders[key.node]
            self._touch(placed.name).drop(key.node)
            self._say(events.WorkerChanged, job=placed.name, worker=worker, lease=key, state="left")
            placed.running.discard(worker)
        placed.leaving.clear()

    def end(self, job: Job, cause: str) -> None:
        """See `Executor`."""
        self._finish(self._jobs[job.id], "cancelled")

    def leave(self, lease: Lease, cause: str) -> None:
        """See `Executor`: the node is given back before its deadline."""
        if self._epochs.get(lease.key.node) == lease.key.epoch:
            self._go(lease.key.node)

    def reclaim(self, lease: Lease, grace_s: float, cause: str) -> None:
        """See `Executor`: an operator's drain is an owner's reclaim."""
        self.take_back(lease.key.node, grace_s)

    def forget(self, key: LeaseKey, site: str) -> None:
        """See `Executor`: nothing is kept of a lease that is over."""

    # --- jobs --------------------------------------------------------------------------------------------------

    def _reach(self, placed: _Placed) -> None:
        placed.reached = True
        self._dismiss_leaving(placed)
        for worker in sorted(placed.workers.keys() - placed.running):
            self._say(
                events.WorkerChanged, job=placed.name, worker=worker, lease=placed.workers[worker], state="running"
            )
        placed.running = set(placed.workers)
        clock, width = placed.clock, len(placed.workers)
        stall_s = (clock.up_s if clock.stall_is_up else clock.down_s) if width else 0.0
        cause = placed.cause if placed.cause == "start" else "grow" if clock.stall_is_up else "shrink"
        said = {"job": placed.name, "width": width}
        self._say(events.AssignmentReached, **said, revision=placed.revision, cause=cause, stall_s=stall_s)
        if self._reports_rates and width:
            rate = clock.rate * clock.job.one_node_rate
            self._say(events.JobProgressed, **said, step=0, total=0, loss=0.0, rate=rate, rate_unit="samples/s")

    def _finish(self, placed: _Placed, outcome: str) -> None:
        clock = self._touch(placed.name)
        for _, key in sorted((placed.workers | placed.leaving).items()):
            del self._holders[key.node]
            clock.drop(key.node)
        placed.workers, placed.leaving, placed.running, placed.reached = {}, {}, set(), True
        self._say(events.JobEnded, job=placed.name, outcome=outcome)

    def _say(self, kind: type[events.Event], /, **fields: object) -> None:
        self._post(kind(at_s=self._clock.now_s(), cause_id="trace", **fields))


def _bytes_per_s(clock: JobClock) -> float:
    """How fast a node loads experts: at its full width the job's up cost is what each node's share takes."""
    job, shape = clock.job, clock.job.shape
    shards = next((need.max for need in job.needs if need.role is Role.SHARD), 1)
    if shape is None or not clock.up_s:
        return float("inf")
    return job.copies * shape.layers * shape.experts * shape.expert_bytes / shards / clock.up_s
