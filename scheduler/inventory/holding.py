"""What handlers of several kinds of event share: leases open, drain and end, workers are lost, the books follow."""

from __future__ import annotations

from scheduler.domain.changing import changed
from scheduler.domain.cluster import Lease, LeaseKey, LeaseState, Node, NodeState
from scheduler.domain.jobs import Job, JobState, Worker, WorkerState
from scheduler.domain.ledger import AccountKey, Use
from scheduler.inventory.effects import Forget, Grant, Join
from scheduler.inventory.records import Records

COHORT_WINDOW_S = 60.0
"""Leases of a site that open within this time of the first one form a cohort."""

EXPIRY_LEAD_S = 10.0
"""A lease whose end is known drains at least this long before it."""

FIRST_REJOIN_DELAY_S = 10.0
LAST_REJOIN_DELAY_S = 300.0


def fence(r: Records, message: str, *, job: str = "", node: str = "") -> None:
    """Note that something from the past was left without effect."""
    r.log("fenced", message, job=job, node=node, code="stale", remedy="Nothing needs to be done: newer news stands.")


# --- nodes and leases ------------------------------------------------------------------------------------------


def set_node(r: Records, node: Node, state: NodeState) -> Node:
    """Keep a node's new description, with a change of state if it is one."""
    known = r.nodes.get(node.id)
    if known is None or known.state is state:
        r.put(changed(node, state=state))
        return r.nodes[node.id]
    moved: Node = r.move(node, state)
    return moved


def open_if_spare(r: Records, node: Node) -> None:
    """Open a lease on a spare node, and have it join its site if the site is there."""
    if node.state is not NodeState.SPARE or r.live_lease_of(node.id) or r.now_s < r.not_before.get(node.id, 0.0):
        return
    devices = tuple(d for d in node.devices if d.id in node.spare_devices)
    if not devices or (node.expected_end_s is not None and drain_from_s(node) <= r.now_s):
        return
    key = LeaseKey(node.id, r.next_epoch())
    lease = Lease(
        key,
        node.site,
        LeaseState.GRANTED,
        devices,
        node.address,
        started_s=r.now_s,
        cohort=_cohort(r, node.site),
        grace_s=node.grace_s,
        expected_end_s=node.expected_end_s,
        booked_until_s=r.now_s,
    )
    r.put(lease)
    r.books.open(str(key), AccountKey(node.site, node.id, "", ""), (d.id for d in devices), r.now_s)
    r.move(node, NodeState.LENT)
    r.past_of(node.site).opened(r.now_s)
    r.log("lease_opened", f"lease {key}: {len(devices)} devices of {node.id}", node=node.id, site=node.site)
    r.effects.append(Grant(lease))
    join_if_possible(r, lease)


def drain_from_s(expiring: Node | Lease) -> float:
    """When a node or lease whose end is known starts to drain."""
    return (expiring.expected_end_s or 0.0) - max(expiring.grace_s, EXPIRY_LEAD_S)


def _cohort(r: Records, site: str) -> str:
    name, first_s = r.cohorts.get(site, ("", -COHORT_WINDOW_S - 1))
    if r.now_s - first_s > COHORT_WINDOW_S:
        name, first_s = f"{site}@{r.now_s:.3f}", r.now_s
        r.cohorts[site] = (name, first_s)
    return name


def join_if_possible(r: Records, lease: Lease) -> None:
    """Have the lease's agent join the site's Ray cluster, unless the site is away."""
    site = r.sites.get(lease.site)
    if site is None or not site.connected or lease.state is LeaseState.DRAINING:
        return
    if lease.state is LeaseState.GRANTED:
        lease = r.move(lease, LeaseState.JOINING)
    r.effects.append(Join(lease, site))


def drain(r: Records, lease: Lease, deadline_s: float, cause: str) -> None:
    """The lease is to be empty by its deadline; an earlier deadline stands."""
    if lease.state is LeaseState.DRAINING:
        earliest = min(deadline_s, lease.deadline_s if lease.deadline_s is not None else deadline_s)
        if earliest != lease.deadline_s:
            r.put(changed(lease, deadline_s=earliest))
        return
    r.move(lease, LeaseState.DRAINING, deadline_s=deadline_s, drain_cause=cause)
    node = r.nodes[lease.key.node]
    if node.state is NodeState.LENT:
        r.move(node, NodeState.DRAINING)
    message = f"lease {lease.key} drains: {cause}, {max(0.0, deadline_s - r.now_s):.1f} s are left"
    r.log("lease_draining", message, node=node.id, site=lease.site, deadline_s=deadline_s)


def end_lease(r: Records, lease: Lease, cause: str) -> None:
    """Nothing of ours is on the node any more; workers that were still on it are lost."""
    for worker in r.workers_on(lease.key):
        _bury(r, worker, f"lease {lease.key} ended: {cause}")
    r.books.close(str(lease.key), r.now_s)
    r.past_of(lease.site).ended(lease, r.now_s, cause)
    r.move(r.leases[lease.key], LeaseState.ENDED, ended_s=r.now_s, end_cause=cause, booked_until_s=r.now_s)
    r.log("lease_ended", f"lease {lease.key} ended: {cause}", node=lease.key.node, site=lease.site)
    r.effects.append(Forget(lease.key, lease.site))


def lose_node(r: Records, node: Node, cause: str) -> None:
    """A suspect node is gone for good, and its lease with it."""
    lease = r.live_lease_of(node.id)
    if lease:
        end_lease(r, lease, cause)
    r.suspect_since.pop(node.id, None)
    set_node(r, changed(node, spare_devices=()), NodeState.LOST)
    r.log("node_lost", f"node {node.id} is lost: {cause}", node=node.id, site=node.site)


def hold_back(r: Records, node: str) -> None:
    """Do not try a node that cannot join again at once; longer each time."""
    delay_s = r.rejoin_delay.get(node, FIRST_REJOIN_DELAY_S)
    r.rejoin_delay[node] = min(2 * delay_s, LAST_REJOIN_DELAY_S)
    r.not_before[node] = r.now_s + delay_s


# --- workers and books -----------------------------------------------------------------------------------------


def lose_worker(r: Records, worker: Worker, detail: str) -> None:
    """A worker died; its site is told with the next assignment, in case it does not know."""
    _bury(r, worker, detail)
    rebook(r, worker.lease)


def _bury(r: Records, worker: Worker, detail: str) -> None:
    r.move(worker, WorkerState.LOST, since_s=r.now_s)
    r.lost_workers[worker.job] = (*r.lost_workers.get(worker.job, ()), worker.id)
    r.log("worker_lost", f"{worker.id} is lost: {detail}", job=worker.job, node=worker.lease.node)


def end_worker(r: Records, worker: Worker) -> None:
    """A worker left as it was meant to."""
    r.move(worker, WorkerState.ENDED, since_s=r.now_s)
    rebook(r, worker.lease)


def rebook(r: Records, key: LeaseKey, at_s: float | None = None) -> None:
    """Book a lease's devices up to now, and from now on under what they do now."""
    lease, held, now_s = r.leases[key], r.on_lease.get(key, {}), r.now_s if at_s is None else at_s
    if not lease.is_live:
        return
    r.books.settle(str(key), now_s)
    for device in lease.devices:
        worker = held.get(device.id)
        line, use = _use(r, lease, r.workers[worker] if worker else None)
        r.books.use(str(key), device.id, line, use, now_s)
    if lease.booked_until_s != now_s:
        r.put(changed(lease, booked_until_s=now_s), quiet=True)


def rebook_job(r: Records, job: str) -> None:
    """Book all leases that a job has workers on."""
    for key in sorted({worker.lease for worker in r.workers_of(job)}):
        rebook(r, key)


def _use(r: Records, lease: Lease, worker: Worker | None) -> tuple[AccountKey, Use]:
    if worker is None:
        return AccountKey(lease.site, lease.key.node, "", ""), Use.IDLE
    job: Job = r.jobs[worker.job]
    works = worker.state is WorkerState.RUNNING and job.state is JobState.RUNNING
    return AccountKey(lease.site, lease.key.node, job.id, job.user), Use.USEFUL if works else Use.RESCALE
