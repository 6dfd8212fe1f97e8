"""A job whose scaling is unknown is seen at every width, from wide to narrow, and nobody else pays for it."""

from __future__ import annotations

from dataclasses import replace

from scheduler.domain.jobs import Progress, RescaleRecord, Role, RoleNeed
from scheduler.domain.plan import Snapshot
from scheduler.planning.plan import plan
from scheduler.simulation import policies
from scheduler.simulation.outcome import outcome_of
from scheduler.simulation.replay import Replayer, Setting
from tests.scheduler.world import World
from tests.simulation.test_replay import job, trace_of

LONG_S = 20_000.0
WIDE = (RoleNeed(Role.TRAINER, 1, 8),)


def settled(nodes: int = 8, jobs: int = 1, curve: tuple[tuple[int, float], ...] = ((8, 40.0),)) -> Snapshot:
    """Jobs that have run for long at the widths that they were given, measured where `curve` says."""
    world = World()
    world.add_site()
    world.add_nodes(nodes)
    names = [world.submit(needs=WIDE) for _ in range(jobs)]
    world.run(10.0)
    snapshot = world.inventory.snapshot(LONG_S)
    assert [j.id for j in snapshot.jobs] == names
    return replace(snapshot, jobs=tuple(replace(j, curve=curve, progress=Progress()) for j in snapshot.jobs))


def widths(snapshot: Snapshot) -> dict[str, int]:
    """The widths that the plan changes."""
    return {step.assignment.job: step.assignment.width for step in plan(snapshot).steps}  # type: ignore[union-attr]


def moved(snapshot: Snapshot, now_s: float) -> Snapshot:
    """After the plan's steps, which have been reached."""
    steps = {step.assignment.job: step.assignment for step in plan(snapshot).steps}  # type: ignore[union-attr]
    jobs = tuple(
        replace(
            j,
            assignment=steps[j.id],
            reached_revision=steps[j.id].revision,
            rescales=(*j.rescales, RescaleRecord(now_s, "shrink", steps[j.id].width, 0.5)),
        )
        if j.id in steps
        else j
        for j in snapshot.jobs
    )
    stay = {slot.worker for j in jobs if j.assignment for slot in j.assignment.workers}
    return replace(snapshot, jobs=jobs, workers=tuple(w for w in snapshot.workers if w.id in stay), now_s=now_s)


def measured(snapshot: Snapshot) -> Snapshot:
    """After each job was measured at its width."""
    jobs = tuple(replace(j, curve=tuple(sorted({*j.curve, (j.width, 5.0 * j.width)}))) for j in snapshot.jobs)
    return replace(snapshot, jobs=jobs)


def test_widths_are_visited_from_wide_to_narrow_and_then_all_nodes_are_used_again() -> None:
    snapshot, seen = settled(), []
    for _ in range(3):
        snapshot = moved(snapshot, snapshot.now_s + 1)
        seen.append(snapshot.jobs[0].width)
        assert widths(snapshot) == {}, "it stays until it is measured"
        snapshot = measured(snapshot)
    assert seen == [4, 2, 1]
    assert widths(snapshot) == {snapshot.jobs[0].id: 8}


def test_a_job_is_not_explored_before_it_has_run_for_long() -> None:
    assert widths(replace(settled(), now_s=200.0)) == {}


def test_a_job_that_is_known_is_left_alone() -> None:
    assert widths(settled(curve=((1, 5.0), (2, 10.0), (4, 20.0), (8, 40.0)))) == {}
    assert widths(settled(curve=((1, 5.0), (2, 10.0), (3, 14.0), (6, 27.0)))) == {}, (
        "each point speaks for the widths around it"
    )


def test_one_job_at_a_time_and_nobody_is_stopped_or_shrunk_for_it() -> None:
    snapshot = settled(nodes=16, jobs=2)
    (first, second) = snapshot.jobs
    assert widths(snapshot) == {first.id: 4}
    snapshot = moved(snapshot, snapshot.now_s + 1)
    assert snapshot.jobs[1].width == second.width
    assert widths(snapshot) == {}


def test_a_width_at_which_nothing_is_measured_is_given_up() -> None:
    snapshot = moved(settled(), LONG_S)
    assert snapshot.jobs[0].width == 4
    later = replace(snapshot, now_s=LONG_S + 100)
    assert widths(later) == {later.jobs[0].id: 2}


def test_a_deadline_leaves_no_time_for_it() -> None:
    snapshot = settled()
    hurried = tuple(replace(j, deadline_s=LONG_S + 1000) for j in snapshot.jobs)
    assert widths(replace(snapshot, jobs=hurried)) == {}


def test_who_says_nothing_of_its_scaling_is_found_out() -> None:
    """Jobs that scale badly, without their curves: nearly as much comes of them as with them."""
    flat = ((1, 10.0), (2, 17.0), (4, 22.0), (8, 24.0))
    jobs = [job("a", curve=flat), job("b"), job("c", curve=flat)]
    spans = [(f"n{i}", 400.0 * k + 37 * i, 400.0 * k + 37 * i + 350) for i in range(8) for k in range(15)]
    with_them, without = (
        outcome_of(Replayer(trace_of(*spans), jobs, plan, Setting(3, True, curves_known=known)).run())
        for known in (True, False)
    )
    assert without.total.useful_s > 0.95 * with_them.total.useful_s
    assert without.replay.unsettled == 0


def test_peers_do_not_explore() -> None:
    spans = [(f"n{i}", 0.0, 30_000.0) for i in range(8)]
    jobs = [job("a")]
    peer = policies.bftrainer({j.id: j for j in jobs}, 300.0)
    done = Replayer(trace_of(*spans), jobs, peer, Setting(1, True, curves_known=False)).run()
    assert done.jobs[0].clock.tally.rescales == 2, "a start and the end"


def test_a_quiet_machine_explores_too() -> None:
    spans = [(f"n{i}", 0.0, 60_000.0) for i in range(8)]
    done = Replayer(trace_of(*spans), [job("a")], plan, Setting(1, True, curves_known=False)).run()
    assert done.jobs[0].clock.tally.rescales == 6, "a start, three visits, back, and the end"
