"""The invariants of the inventory. Tests assert them after everything that they do."""

from __future__ import annotations

from collections import Counter

from scheduler.domain.cluster import Lease, NodeState
from scheduler.domain.jobs import Job, JobState, WorkerState
from scheduler.inventory.records import Records


def check(r: Records) -> None:
    """Raises AssertionError naming the first thing that is wrong."""
    for lease in r.leases.values():
        _check_lease(r, lease)
    for job in r.jobs.values():
        _check_job(r, job)
    _check_nodes(r)
    _check_indexes(r)
    r.books.check()


def _check_lease(r: Records, lease: Lease) -> None:
    key = lease.key
    assert lease.is_live == (lease.ended_s is None), f"{key}: ended_s and state {lease.state} disagree"
    assert lease.key.epoch <= r.last_epoch, f"{key}: epoch was never given out"
    held = [(d, w.id) for w in r.workers.values() if w.is_live and w.lease == key for d in w.devices]
    if not lease.is_live:
        assert not held, f"{key} has ended but carries {held}"
        return
    assert r.live_lease.get(key.node) is lease, f"{key} is live, but its node's live lease is another"
    twice = [d for d, n in Counter(d for d, _ in held).items() if n > 1]
    assert not twice, f"{key}: devices {twice} are booked twice: {held}"
    extra = {d for d, _ in held} - {d.id for d in lease.devices}
    assert not extra, f"{key}: devices {extra} are not the lease's"


def _check_job(r: Records, job: Job) -> None:
    assert job.state.is_live == (job.ended_s is None), f"{job.id}: ended_s and state {job.state} disagree"
    slots = job.assignment.workers if job.assignment else ()
    if not job.state.is_live:
        workers = (*slots, *r.workers_of(job.id))
        assert not workers, f"{job.id} has ended but has workers: {workers}"
    if slots:
        counts = Counter(slot.role for slot in slots)
        for need in job.needs:
            assert need.min <= counts[need.role] <= need.max, f"{job.id}: {counts[need.role]} workers as {need.role}"
        assert len({slot.worker for slot in slots}) == len(slots), f"{job.id}: a worker twice in its assignment"
    if job.state in (JobState.QUEUED, JobState.PARKED):
        assert not slots, f"{job.id} is {job.state} but has an assignment"
    wanted = {slot.worker: slot for slot in slots}
    for worker in r.workers_of(job.id):
        slot = wanted.get(worker.id)
        assert (slot is None) == (worker.state is WorkerState.LEAVING), f"{worker.id} is {worker.state}, slot {slot}"
        assert slot is None or (slot.lease, slot.devices) == (worker.lease, worker.devices), f"{worker.id} moved"


def _check_nodes(r: Records) -> None:
    for node in r.nodes.values():
        lease = r.live_lease_of(node.id)
        if node.state in (NodeState.LENT, NodeState.DRAINING):
            assert lease, f"{node.id} is {node.state} without a live lease"
        if node.state in (NodeState.BUSY, NodeState.SPARE, NodeState.LOST):
            assert lease is None, f"{node.id} is {node.state} but {lease and lease.key} is live"
        away = node.state in (NodeState.SUSPECT, NodeState.LOST)
        assert node.agent_connected != away, f"{node.id} is {node.state}, agent connected: {node.agent_connected}"
        assert (node.id in r.suspect_since) == (node.state is NodeState.SUSPECT), f"{node.id}: suspect since when?"


def _check_indexes(r: Records) -> None:
    live = {lease.key for lease in r.leases.values() if lease.is_live}
    assert {lease.key for lease in r.live_lease.values()} == live, "the index of live leases is wrong"
    assert r.on_lease.keys() == live, "the index of live leases' workers is wrong"
    assert r.live_leases() == tuple(r.leases[key] for key in sorted(live)), "live leases are not as they are"
    assert r.live_jobs == {j.id for j in r.jobs.values() if j.state.is_live}, "the index of live jobs is wrong"
    for worker in r.workers.values():
        on_lease = all(r.on_lease.get(worker.lease, {}).get(d) == worker.id for d in worker.devices)
        assert on_lease == worker.is_live, f"{worker.id} is {worker.state}; the index of its lease says otherwise"
