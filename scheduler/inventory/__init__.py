"""The state of everything: the one that the control loop changes, and all others only read.

inventory.apply(event)      an event, through the transition tables
inventory.snapshot(now_s)   what the planner sees
inventory.assign(step)      a step that commit has checked
inventory.take_changes()    what must be saved
inventory.take_effects()    what must be told to agents and sites after that
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from scheduler.domain import events
from scheduler.domain.changes import Changes, Saved
from scheduler.domain.cluster import Lease, LeaseKey, LeaseState, Node, NodeState, ReclaimRecord, Site
from scheduler.domain.jobs import Job, Worker
from scheduler.domain.ledger import Account, AccountKey, Books
from scheduler.domain.plan import Assign, Outlook, Rejected, Release, Snapshot
from scheduler.domain.reasons import Refused
from scheduler.inventory import agents, assigning, checks, jobs, sites, ticks
from scheduler.inventory.effects import Effect
from scheduler.inventory.holding import COHORT_WINDOW_S, rebook
from scheduler.inventory.records import Records
from scheduler.inventory.ticks import BOOK_EVERY_S
from scheduler.planning.forecast import Calibration

Handler = Callable[[Records, Any], None]

_HANDLERS: Mapping[type[events.Event], Handler] = {
    events.AgentConnected: agents.connected,
    events.AgentDisconnected: agents.disconnected,
    events.NodeReported: agents.reported,
    events.NodeReclaimed: agents.reclaimed,
    events.RayletStarted: agents.raylet_started,
    events.NodeLeft: agents.left,
    events.DrainRequested: agents.drain_requested,
    events.SiteConnected: sites.connected,
    events.SiteDisconnected: sites.disconnected,
    events.NodeReady: sites.node_ready,
    events.NodeGone: sites.node_gone,
    events.AssignmentReached: jobs.reached,
    events.AssignmentRefused: jobs.assignment_refused,
    events.WorkerChanged: jobs.worker_changed,
    events.JobProgressed: jobs.progressed,
    events.ExpertsLoaded: jobs.experts_loaded,
    events.WorkLost: jobs.work_lost,
    events.JobEnded: jobs.ended,
    events.EndpointOpened: jobs.endpoint_opened,
    events.JobSubmitted: jobs.submitted,
    events.CancelRequested: jobs.cancel_requested,
    events.Tick: ticks.tick,
}


class Inventory:
    """See the module.

    `lease_ttl_s`: how long an agent may be away before its lease counts as lost. `book_every_s`: how old the books of
    a lease may be at most; they are always right at its end, and after `settle`.
    """

    def __init__(self, lease_ttl_s: float = 20.0, book_every_s: float = BOOK_EVERY_S) -> None:
        self._records = Records(lease_ttl_s, book_every_s)
        self._stimulus = ""

    @classmethod
    def restore(cls, saved: Saved, lease_ttl_s: float = 20.0) -> Inventory:
        """The inventory as it was saved. Agents and sites are away until they connect; jobs run on meanwhile."""
        inventory = cls(lease_ttl_s)
        _restore(inventory._records, saved)
        return inventory

    # --- reading -----------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Grows with every change that a plan depends on."""
        return self._records.version

    @property
    def now_s(self) -> float:
        """The newest time that it has seen."""
        return self._records.now_s

    @property
    def nodes(self) -> Mapping[str, Node]:
        """All nodes by id."""
        return MappingProxyType(self._records.nodes)

    @property
    def leases(self) -> Mapping[LeaseKey, Lease]:
        """Live leases and those that ended lately."""
        return MappingProxyType(self._records.leases)

    @property
    def jobs(self) -> Mapping[str, Job]:
        """All jobs by id."""
        return MappingProxyType(self._records.jobs)

    @property
    def workers(self) -> Mapping[str, Worker]:
        """Live workers by id (and those that ended but are not yet saved)."""
        return MappingProxyType(self._records.workers)

    @property
    def sites(self) -> Mapping[str, Site]:
        """Sites that have connected since the start."""
        return MappingProxyType(self._records.sites)

    @property
    def requests(self) -> Mapping[str, str]:
        """Job ids by the request id of their submit."""
        return MappingProxyType(self._records.requests)

    @property
    def accounts(self) -> Mapping[AccountKey, Account]:
        """The books; at most `book_every_s` old."""
        return MappingProxyType(dict(self._records.books.accounts))

    @property
    def reclaims(self) -> Sequence[ReclaimRecord]:
        """The newest hand-backs, oldest first."""
        return tuple(self._records.reclaims)

    def live_lease(self, node: str) -> Lease | None:
        """The node's live lease, if it has one."""
        return self._records.live_lease_of(node)

    def worker_on(self, key: LeaseKey, device: str) -> str:
        """Id of the worker that holds a device of a live lease; empty if it is free."""
        return self._records.on_lease.get(key, {}).get(device, "")

    def workers_on(self, key: LeaseKey) -> Sequence[Worker]:
        """Live workers on a lease, sorted by id."""
        return self._records.workers_on(key)

    def is_suspect(self, node: str) -> bool:
        """Whether the node's agent is away."""
        return node in self._records.suspect_since

    def story(self, entity: str) -> Sequence[str]:
        """The last that happened to "node n1", "lease n1/7", "job j" or "worker w", oldest first."""
        return self._records.story(entity)

    def snapshot(self, now_s: float) -> Snapshot:
        """What a plan may depend on, sorted, so that equal inventories give equal snapshots."""
        r = self._records
        live = r.live_leases()
        return Snapshot(
            version=r.version,
            now_s=now_s,
            leases=live,
            jobs=tuple(r.jobs[job] for job in sorted(r.live_jobs)),
            connected_sites=tuple(sorted(s.id for s in r.sites.values() if s.connected)),
            workers=tuple(r.live_workers()),
            suspect=tuple(lease.key for lease in live if lease.key.node in r.suspect_since) if r.suspect_since else (),
            withheld=tuple(held for _, held in sorted(r.withheld.items())),
            outlooks=tuple(self._outlook(site, now_s) for site in sorted(r.pasts)),
            usages=r.shares.usages(),
            spent=tuple((job, r.books.job_us(job) / 1e6) for job in sorted(r.live_jobs) if _has_budget(r.jobs[job])),
            expert_loads=tuple(sorted(r.expert_loads.items())),
        )

    def _outlook(self, site: str, now_s: float) -> Outlook:
        r = self._records
        return r.pasts[site].outlook(site, now_s, (lease for lease in r.live_leases() if lease.site == site))

    def calibration(self, site: str) -> tuple[Calibration, ...]:
        """Whether the forecast of a site was right so far: survival as foretold and as it came."""
        past = self._records.pasts.get(site)
        return past.foretold.calibration() if past else ()

    def check(self) -> None:
        """Raises AssertionError if any invariant is broken."""
        checks.check(self._records)

    # --- changing ----------------------------------------------------------------------------------------------

    def apply(self, event: events.Event) -> None:
        """Act on an event. Raises Refused for a request that cannot be met, IllegalTransition for a bug."""
        r, before = self._records, self._records.version
        self.advance(event.at_s)
        r.cause_id = event.cause_id or f"{type(event).__name__}-{r.last_sequence + 1}"
        try:
            _HANDLERS[type(event)](r, event)
        except Refused as refused:
            r.log("refused", str(refused), code=refused.reason.code)
            raise
        if r.version != before:
            self._stimulus = r.cause_id

    def advance(self, now_s: float) -> None:
        """Time passed; it never goes backwards here, whatever clocks say."""
        self._records.now_s = max(self._records.now_s, now_s)

    def assign(self, step: Assign) -> None:
        """Carry out a step that commit has checked."""
        self._records.cause_id = self._stimulus
        assigning.assign(self._records, step)

    def release(self, step: Release) -> None:
        """Carry out a step that commit has checked."""
        self._records.cause_id = self._stimulus
        assigning.release(self._records, step)

    def reject(self, rejected: Rejected) -> None:
        """Note a step that no longer fits."""
        step, r = rejected.step, self._records
        job, node = (step.assignment.job, "") if isinstance(step, Assign) else ("", step.lease.node)
        r.log("step_rejected", str(rejected.reason), job=job, node=node, code=rejected.reason.code)

    def note(self, kind: str, message: str, job: str = "", **data: Any) -> None:
        """Add a row to the event log that no change stands behind."""
        self._records.log(kind, message, job=job, **data)

    def settle(self, now_s: float) -> None:
        """Bring the books of all live leases up to `now_s`."""
        self.advance(now_s)
        for lease in self._records.live_leases():
            rebook(self._records, lease.key)

    def take_changes(self) -> Changes:
        """What changed since the last call."""
        return self._records.take_changes()

    def untake(self, changes: Changes) -> None:
        """The changes could not be saved: the next `take_changes` gives them again."""
        self._records.untake(changes)

    def take_effects(self) -> tuple[Effect, ...]:
        """What agents and sites must be told since the last call, in order."""
        effects, self._records.effects = tuple(self._records.effects), []
        return effects


def _has_budget(job: Job) -> bool:
    return job.budget_device_s is not None


def _restore(r: Records, saved: Saved) -> None:
    r.last_epoch, r.last_sequence = saved.last_epoch, saved.last_sequence
    r.requests = dict(saved.requests)
    r.reclaims.extend(saved.reclaims)
    r.books = Books(saved.accounts)
    for node in saved.nodes:
        r.put(node)
    for job in saved.jobs:
        r.put(job)
    for lease in saved.leases:
        _restore_lease(r, lease)
    for worker in saved.workers:
        r.put(worker)
    for lease in r.live_leases():
        rebook(r, lease.key, lease.booked_until_s)
    r.take_changes()
    of_site: dict[str, list[Lease]] = {}
    for lease in (*saved.ended, *saved.leases):
        of_site.setdefault(lease.site, []).append(lease)
    for site, leases in of_site.items():
        r.past_of(site).restore(leases)
    for node in saved.nodes:
        _restore_node(r, node)


def _restore_lease(r: Records, lease: Lease) -> None:
    r.put(lease)
    if not lease.is_live:
        return
    idle_line = AccountKey(lease.site, lease.key.node, "", "")
    r.books.open(str(lease.key), idle_line, (d.id for d in lease.devices), lease.booked_until_s)
    newest, first_s = r.cohorts.get(lease.site, ("", 0.0))
    if lease.started_s - COHORT_WINDOW_S <= first_s and lease.cohort != newest:
        return
    first_s = min(first_s, lease.started_s) if lease.cohort == newest else lease.started_s
    r.cohorts[lease.site] = (lease.cohort, first_s)


def _restore_node(r: Records, node: Node) -> None:
    if node.state is NodeState.LOST:
        return
    r.suspect_since[node.id] = None
    away = replace(node, agent_connected=False)
    if node.state is NodeState.SUSPECT:
        r.put(away)
    else:
        r.move(away, NodeState.SUSPECT)


__all__ = ["Effect", "Inventory", "LeaseState"]
