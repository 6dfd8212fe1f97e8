"""What every home of the executor port must do. Subclass with a fixture `harness` that gives a `Harness`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scheduler.domain import events
from scheduler.domain.cluster import Lease, LeaseState
from scheduler.domain.jobs import Assignment, Job, WorkerSlot
from scheduler.domain.plan import Assign
from tests.contract.harness import Harness


def join_all(harness: Harness, count: int) -> list[Lease]:
    """Ready leases."""
    leases = list(harness.new_leases(count))
    for lease in leases:
        harness.executor.grant(lease)
        harness.executor.join(replace(lease, state=LeaseState.JOINING), harness.site)
    for lease in leases:
        harness.expect(events.NodeReady, lambda e, key=lease.key: e.lease == key)  # type: ignore[misc]
    return [replace(lease, state=LeaseState.READY) for lease in leases]


def slots_on(job: Job, leases: Sequence[Lease], kept: Sequence[WorkerSlot] = ()) -> tuple[WorkerSlot, ...]:
    """One worker on each lease: those that are kept, and new ones on the others."""
    on = {slot.lease: slot for slot in kept}
    role, number = job.needs[0].role, len(kept)
    return tuple(
        on.get(lease.key)
        or WorkerSlot(f"{job.id}-w{lease.key.epoch}-{number}", role, lease.key, (lease.devices[0].id,))
        for lease in leases
    )


def assign(
    harness: Harness,
    job: Job,
    revision: int,
    leases: Sequence[Lease],
    cause: str,
    kept: Sequence[WorkerSlot] = (),
    lost: tuple[str, ...] = (),
) -> Job:
    """Send an assignment and wait until the site says that it is reached. The job as assigned."""
    job = send(harness, job, revision, leases, cause, kept, lost)
    harness.expect(events.AssignmentReached, lambda e: e.job == job.id and e.revision == revision)
    return job


def send(
    harness: Harness,
    job: Job,
    revision: int,
    leases: Sequence[Lease],
    cause: str,
    kept: Sequence[WorkerSlot] = (),
    lost: tuple[str, ...] = (),
) -> Job:
    """Send an assignment. The job as assigned."""
    assignment = Assignment(job.id, revision, slots_on(job, leases, kept))
    job = replace(job, assignment=assignment, site=harness.site.id)
    harness.executor.assign(job, Assign(assignment, cause), tuple(leases), lost)
    return job


def workers_said(harness: Harness, job: Job, state: str) -> list[str]:
    """Workers of a job of which such a state was reported, in order."""
    return [e.worker for e in harness.seen(events.WorkerChanged) if e.job == job.id and e.state == state]


class ExecutorContract:
    """The suite. Where nodes may die by accident, `AccidentContract`."""

    def test_a_lease_is_joined(self, harness: Harness) -> None:
        (lease,) = join_all(harness, 1)
        started = harness.expect(events.RayletStarted, lambda e: e.lease == lease.key)
        assert not started.error

    def test_a_job_starts_on_the_leases_that_it_is_given(self, harness: Harness) -> None:
        leases = join_all(harness, 2)
        job = assign(harness, harness.new_job(1, 3), 1, leases, "start")
        assert job.assignment
        reached = harness.expect(events.AssignmentReached, lambda e: e.job == job.id)
        assert (reached.revision, reached.width) == (1, 2)
        assert reached.stall_s >= 0
        placed = {e.worker: e.lease for e in harness.seen(events.WorkerChanged) if e.state == "running"}
        assert {s.worker: s.lease for s in job.assignment.workers}.items() <= placed.items()

    def test_sent_twice_changes_nothing(self, harness: Harness) -> None:
        leases = join_all(harness, 2)
        job = assign(harness, harness.new_job(1, 3), 1, leases, "start")
        assert job.assignment
        harness.executor.assign(job, Assign(job.assignment, "start"), tuple(leases), ())
        job = assign(harness, job, 2, leases[:1], "shrink", job.assignment.workers)
        assert len(workers_said(harness, job, "running")) == 2, "no worker was started twice"
        assert not workers_said(harness, job, "lost")

    def test_an_older_revision_has_no_effect(self, harness: Harness) -> None:
        leases = join_all(harness, 2)
        job = assign(harness, harness.new_job(1, 3), 2, leases, "start")
        assert job.assignment
        send(harness, job, 1, leases[:1], "shrink", job.assignment.workers)
        job = assign(harness, job, 3, leases, "move", job.assignment.workers)
        assert not workers_said(harness, job, "left")

    def test_growing_and_shrinking_disturb_no_worker_that_stays(self, harness: Harness) -> None:
        leases = join_all(harness, 3)
        job = assign(harness, harness.new_job(1, 3), 1, leases[:2], "start")
        assert job.assignment
        first = job.assignment.workers
        job = assign(harness, job, 2, leases, "grow", first)
        assert job.assignment
        job = assign(harness, job, 3, leases[1:], "reclaim", job.assignment.workers)
        assert workers_said(harness, job, "left") == [first[0].worker]
        assert workers_said(harness, job, "running").count(first[1].worker) == 1
        assert not workers_said(harness, job, "lost")

    def test_an_empty_lease_is_left_without_a_kill(self, harness: Harness) -> None:
        leases = join_all(harness, 2)
        job = assign(harness, harness.new_job(1, 3), 1, leases, "start")
        assert job.assignment
        assign(harness, job, 2, leases[:1], "reclaim", job.assignment.workers)
        harness.executor.leave(leases[1], "reclaim")
        left = harness.expect(events.NodeLeft, lambda e: e.lease == leases[1].key)
        assert left.killed == 0
        harness.executor.leave(leases[1], "reclaim")

    def test_a_parked_job_goes_on_later(self, harness: Harness) -> None:
        leases = join_all(harness, 1)
        job = assign(harness, harness.new_job(1, 3), 1, leases, "start")
        job = assign(harness, job, 2, (), "reclaim")
        parked = harness.expect(events.AssignmentReached, lambda e: e.job == job.id and e.revision == 2)
        assert parked.width == 0
        assign(harness, job, 3, leases, "start")

    def test_a_job_ends_with_all_its_workers(self, harness: Harness) -> None:
        leases = join_all(harness, 2)
        job = assign(harness, harness.new_job(1, 3), 1, leases, "start")
        harness.executor.end(job, "cancelled")
        ended = harness.expect(events.JobEnded, lambda e: e.job == job.id)
        assert ended.outcome == "cancelled"

    def test_calls_for_peers_that_are_unknown_or_away_do_nothing(self, harness: Harness) -> None:
        (lease,) = harness.new_leases(1)
        stranger = replace(lease, key=replace(lease.key, node="nobody"), site="nowhere")
        harness.executor.grant(stranger)
        harness.executor.join(stranger, replace(harness.site, id="nowhere"))
        harness.executor.leave(stranger, "released")
        harness.executor.reclaim(stranger, 1.0, "drain")
        harness.executor.forget(stranger.key, "nowhere")


class AccidentContract(ExecutorContract):
    """The suite for homes whose nodes may die."""

    def test_a_node_that_dies_is_reported_and_the_rest_goes_on(self, harness: Harness) -> None:
        leases = join_all(harness, 2)
        job = assign(harness, harness.new_job(1, 3), 1, leases, "start")
        assert job.assignment
        victim = job.assignment.workers[1]
        harness.kill(leases[1])
        lost = harness.expect(events.WorkerChanged, lambda e: e.worker == victim.worker and e.state == "lost")
        assert lost.lease == leases[1].key
        harness.executor.forget(leases[1].key, harness.site.id)
        assign(harness, job, 2, leases[:1], "loss", job.assignment.workers, lost=(victim.worker,))
