"""Several kinds of device and several sites, in a live scheduler: who goes where, who moves, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.jobs import Job, JobState, KindCurve, Point, Role, RoleNeed, WorkerSlot
from scheduler.domain.plan import Assign
from scheduler.inventory.learning import learn_kind
from scheduler.planning.kinds import rates_on, speeds_of
from scheduler.planning.plan import plan
from tests.scheduler.world import SERVE, SHAPE, World, submit_event

TWO = (RoleNeed(Role.TRAINER, 2, 2),)


def curves(**one_worker: float) -> tuple[KindCurve, ...]:
    """Measured at widths 1 and 2, with perfect scaling."""
    return tuple(KindCurve(kind, (Point(1, rate), Point(2, 2 * rate))) for kind, rate in sorted(one_worker.items()))


def mixed_world(cpus: int = 2, gpus: int = 2, at: str = "s") -> World:
    """A site with nodes of two kinds."""
    world = World()
    world.add_site(at)
    world.add_nodes(cpus, site=at)
    world.add_nodes(gpus, site=at, kind="gpu", prefix="g")
    world.run(5.0)
    return world


def where(world: World, job: str) -> set[tuple[str, str]]:
    """(site, kind) of all of its workers."""
    slots = world.job(job).assignment.workers
    leases = [(world.inventory.leases[slot.lease], slot.devices[0]) for slot in slots]
    return {(lease.site, d.kind) for lease, device in leases for d in lease.devices if d.id == device}


def reason(world: World, job: str) -> str:
    return str(world.loop.unplaced[job])


# --- who goes where ------------------------------------------------------------------------------------------------


def test_the_fast_kind_goes_to_whom_it_serves_best() -> None:
    """Both are faster on a gpu, one of them by far, though fewer samples a second are the other's habit."""
    world = mixed_world()
    little = world.submit(needs=TWO, kind_curves=curves(cpu=1000.0, gpu=1500.0))
    much = world.submit(needs=TWO, kind_curves=curves(cpu=1.0, gpu=20.0))
    world.run(10.0)
    assert where(world, much) == {("s", "gpu")}
    assert where(world, little) == {("s", "cpu")}


def test_a_job_uses_no_kind_that_it_does_not_name() -> None:
    world = mixed_world(cpus=1, gpus=4)
    job = world.submit(needs=TWO, device_kinds=("cpu",), kind_curves=curves(cpu=1.0, gpu=20.0))
    world.run(10.0)
    assert world.job(job).state is JobState.QUEUED
    assert f"job {job} needs 2 cpu devices at site s: 1 is idle" in reason(world, job)


def test_waiting_jobs_spread_over_the_sites() -> None:
    world = mixed_world(cpus=2, gpus=0)
    world.add_site("t")
    world.add_nodes(4, prefix="t", site="t")
    world.run(5.0)
    jobs = [world.submit(needs=TWO) for _ in range(3)]
    world.run(10.0)
    assert [world.job(job).state for job in jobs] == [JobState.RUNNING] * 3
    assert sorted(site for job in jobs for site, _ in where(world, job)) == ["s", "t", "t"]


def test_whoever_can_go_nowhere_else_is_not_crowded_out() -> None:
    """The first could have either kind and would fill the only one that the second can use."""
    world = mixed_world()
    either = world.submit(needs=TWO)
    only = world.submit(needs=TWO, device_kinds=("cpu",))
    world.run(10.0)
    assert (where(world, either), where(world, only)) == ({("s", "gpu")}, {("s", "cpu")})


def test_a_gang_is_never_split_over_kinds_or_sites() -> None:
    world = mixed_world(cpus=1, gpus=1)
    world.add_site("t")
    world.add_nodes(1, prefix="t", site="t")
    job = world.submit(needs=TWO)
    world.run(10.0)
    assert world.job(job).state is JobState.QUEUED
    said = reason(world, job)
    assert f"job {job} needs 2" in said
    assert "There is no more room elsewhere (" in said
    assert said.count(" at ") == 3, "each pool that it could use is named"


# --- who moves -----------------------------------------------------------------------------------------------------


def running_on_cpus(**fields: object) -> tuple[World, str]:
    """A job that could use both kinds, on cpus because there is nothing else."""
    world = mixed_world(gpus=0)
    job = world.submit(needs=(RoleNeed(Role.TRAINER, 1, 2),), **fields)
    world.run(10.0)
    assert where(world, job) == {("s", "cpu")}
    return world, job


def test_a_running_job_moves_to_a_kind_that_is_much_faster() -> None:
    world, job = running_on_cpus(kind_curves=curves(cpu=1.0, gpu=20.0))
    world.add_nodes(2, kind="gpu", prefix="g")
    world.run(10.0)
    assert where(world, job) == {("s", "gpu")}
    assert world.job(job).width == 2
    assert world.job(job).rescales[-1].cause == "move"
    assert world.job(job).steps_lost == 0
    assert [w.lease for w in world.inventory.workers.values() if w.is_live and w.job == job] == [
        slot.lease for slot in world.job(job).assignment.workers
    ], "nothing is left behind"


def test_it_does_not_move_for_noise_or_for_nothing() -> None:
    for gpu in (1.0, 1.05):
        world, job = running_on_cpus(kind_curves=curves(cpu=1.0, gpu=gpu))
        world.add_nodes(2, kind="gpu", prefix="g")
        world.run(10.0)
        assert where(world, job) == {("s", "cpu")}


def test_it_goes_on_where_it_is_until_there_is_room_for_all_of_it() -> None:
    """A job of little weight has to leave one of the gpus first."""
    world = mixed_world(gpus=1)
    little = world.submit(needs=(RoleNeed(Role.TRAINER, 1, 1),), device_kinds=("gpu",), weight=0.01)
    job = world.submit(needs=TWO, kind_curves=curves(cpu=1.0, gpu=20.0))
    world.run(10.0)
    assert (where(world, little), where(world, job)) == ({("s", "gpu")}, {("s", "cpu")})
    world.add_nodes(1, kind="gpu", prefix="h")
    world.run(10.0)
    assert where(world, job) == {("s", "gpu")}
    widths = [
        row.message.rpartition("width ")[2] for row in world.store.rows if row.kind == "assign" and row.job == job
    ]
    assert widths == ["2", "2"], "once to each kind, and never parked between"
    assert world.job(little).state is JobState.PARKED
    assert f"job {little} needs 1 gpu devices at site s" in reason(world, little)


def test_a_job_whose_kind_is_reclaimed_goes_on_with_another() -> None:
    world = mixed_world()
    job = world.submit(needs=TWO, kind_curves=curves(cpu=1.0, gpu=2.0))
    world.run(10.0)
    assert where(world, job) == {("s", "gpu")}
    for slot in world.job(job).assignment.workers:
        world.twin.owner_reclaims(slot.lease.node, 30.0)
    world.run(10.0)
    assert where(world, job) == {("s", "cpu")}
    assert world.job(job).state is JobState.RUNNING
    assert not any(record.killed for record in world.inventory.reclaims)


def test_a_job_that_has_begun_stays_at_its_site() -> None:
    world, job = running_on_cpus(kind_curves=curves(cpu=1.0, gpu=20.0))
    world.add_site("t")
    world.add_nodes(2, prefix="t", site="t", kind="gpu")
    world.run(10.0)
    assert where(world, job) == {("s", "cpu")}


def test_a_served_model_moves_whole() -> None:
    world = mixed_world(cpus=4, gpus=0)
    job = world.submit(**SERVE, kind_curves=curves(cpu=1.0, gpu=20.0))
    world.run(10.0)
    assert where(world, job) == {("s", "cpu")}
    world.add_nodes(4, kind="gpu", prefix="g")
    world.run(10.0)
    assert where(world, job) == {("s", "gpu")}
    roles = sorted(str(slot.role) for slot in world.job(job).assignment.workers)
    assert roles == ["engine", "shard", "shard", "shard"]


@settings(max_examples=40, deadline=None)
@given(
    cpus=st.integers(4, 6),
    batches=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    shards=st.integers(2, 4),
    copies=st.integers(1, 2),
    faster=st.sampled_from([1.5, 4.0, 20.0]),
    rival=st.booleans(),
)
def test_no_expert_falls_below_its_copies_while_a_plan_moves_the_whole_model(
    cpus: int, batches: list[int], shards: int, copies: int, faster: float, rival: bool
) -> None:
    """Law 3, in a served model that a faster kind of node draws over as they come, beside a job that wants them too.

    What is planned has every copy, on as many nodes; what was there stays until that is reached.
    """
    world = mixed_world(cpus=cpus, gpus=0)
    needs = (RoleNeed(Role.ENGINE, 1, 1), RoleNeed(Role.SHARD, 2, shards))
    serve = {**SERVE, "needs": needs, "copies": copies}
    job = world.submit(**serve, kind_curves=curves(cpu=1.0, gpu=faster))
    world.run(10.0)
    if rival:
        world.submit(needs=(RoleNeed(Role.TRAINER, 1, 2),), device_kinds=("gpu",))
    held = {slot.worker: slot for slot in world.job(job).assignment.workers}
    for count in batches:
        world.add_nodes(count, kind="gpu", prefix="g")
        for _ in range(40):
            world.run(0.25, step_s=0.25)
            now = world.job(job)
            for workers in (now.assignment.workers, *_planned(world, job)):
                assert _fewest_copies(workers) >= copies
            if now.reached_revision == now.assignment_revision:
                held = {slot.worker: slot for slot in now.assignment.workers}
            assert _fewest_copies([s for s in held.values() if s.worker in world.inventory.workers]) >= copies
    has_room = sum(batches) >= 1 + shards + 2 * rival
    assert not has_room or where(world, job) == {("s", "gpu")}


def _planned(world: World, job: str) -> list[tuple[WorkerSlot, ...]]:
    """What the planner would have the job's workers be, if that is a change, before anybody checks it."""
    steps = plan(world.inventory.snapshot(world.clock.now_s())).steps
    return [step.assignment.workers for step in steps if isinstance(step, Assign) and step.assignment.job == job]


def _fewest_copies(slots: Iterable[WorkerSlot]) -> int:
    """Of any expert, on different nodes."""
    nodes: dict[tuple[int, int], set[str]] = {}
    for slot in slots:
        for pair in slot.experts:
            nodes.setdefault(pair, set()).add(slot.lease.node)
    pairs = [(layer, expert) for layer in range(SHAPE.layers) for expert in range(SHAPE.experts)]
    return min(len(nodes.get(pair, ())) for pair in pairs)


# --- what is known of a kind -----------------------------------------------------------------------------------------


def _queued(kind_curves: tuple[KindCurve, ...]) -> Job:
    world = World()
    world.loop.post(submit_event("j", kind_curves=kind_curves))
    world.take_in()
    return world.job("j")


def test_rates_are_in_units_of_the_fastest_kind() -> None:
    job = _queued(curves(cpu=1.0, gpu=4.0))
    assert rates_on(job, "gpu", ("cpu", "gpu"), 2, {})[1] == pytest.approx(1.0)
    assert rates_on(job, "cpu", ("cpu", "gpu"), 2, {})[1] == pytest.approx(0.25)
    assert rates_on(job, "cpu", ("cpu",), 2, {})[1] == pytest.approx(1.0), "nothing else is to be had"


def test_an_unmeasured_kind_is_as_much_faster_as_others_found_it() -> None:
    others = [_queued(curves(cpu=1.0, gpu=4.0)), _queued(curves(cpu=2.0, gpu=32.0))]
    speeds = speeds_of(others)
    assert speeds["gpu", "cpu"] == pytest.approx(8.0)
    job = _queued(curves(cpu=3.0))
    assert rates_on(job, "cpu", ("cpu", "gpu"), 2, speeds)[1] == pytest.approx(1 / 8)
    assert np.allclose(rates_on(job, "cpu", ("cpu", "gpu"), 2, {}), rates_on(job, "gpu", ("cpu", "gpu"), 2, {}))


def test_what_a_site_measures_on_a_kind_is_kept_apart() -> None:
    world = mixed_world()
    job = world.submit(needs=TWO, device_kinds=("gpu",))
    world.run(10.0)
    (measured,) = world.job(job).kind_curves
    assert measured.kind == "gpu"
    assert [(p.width, p.rate) for p in measured.points] == [(2, 2.0)]


def test_each_point_says_how_often_it_was_measured() -> None:
    """That is how far it is to be trusted: a new measurement counts the less against it."""
    once = learn_kind((), "gpu", (), 4, 10.0)
    twice = learn_kind(learn_kind(once, "gpu", (), 2, 6.0), "gpu", (), 4, 20.0)
    assert [(p.width, p.count) for p in twice[0].points] == [(2, 1), (4, 2)]
    assert twice[0].points[1].rate == pytest.approx(15.0)


def test_the_same_plan_in_any_order() -> None:
    world = mixed_world(cpus=4, gpus=3)
    for speed in (2.0, 5.0, 1.0):
        world.submit(needs=(RoleNeed(Role.TRAINER, 1, 3),), kind_curves=curves(cpu=1.0, gpu=speed))
    world.take_in()
    snapshot = world.inventory.snapshot(world.clock.now_s())
    turned = replace(snapshot, leases=snapshot.leases[::-1], jobs=snapshot.jobs[::-1])
    assert plan(snapshot) == plan(turned)
    assert any(isinstance(step, Assign) for step in plan(snapshot).steps)
