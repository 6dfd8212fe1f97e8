"""What its user sets on a job, who had how much of late, and how long a job has waited: each changes the plan."""

from __future__ import annotations

import itertools
import math
import time

import pytest

from protocol.jobspec import InvalidSpec, JobSpec, parse_json, parse_yaml
from scheduler.domain.jobs import JobState, Role, RoleNeed
from scheduler.domain.reasons import Refused
from scheduler.inventory.shares import HALF_LIFE_S, Shares
from scheduler.planning.worth import TURN_S
from scheduler.rpc.submits import submitted
from scheduler.simulation.twin_jobs import Work
from tests.scheduler.world import World, submit_event

WIDE = {"needs": (RoleNeed(Role.TRAINER, 1, 8),), "curve": tuple((width, math.sqrt(width)) for width in range(1, 9))}
"""A job to which each further worker adds less."""


def world_with(nodes: int) -> World:
    """A site with nodes that are lent."""
    world = World(work=Work(rate=math.sqrt))
    world.add_site()
    world.add_nodes(nodes)
    world.run(5.0)
    return world


def widths(world: World, *jobs: str) -> list[int]:
    return [world.job(job).width for job in jobs]


# --- what a user sets ----------------------------------------------------------------------------------------------


def test_a_job_with_priority_gets_more() -> None:
    world = world_with(8)
    plain, first = world.submit(**WIDE), world.submit(**WIDE, priority=1)
    world.run(10.0)
    assert widths(world, first)[0] > widths(world, plain)[0] >= 1
    assert "(priority +1)" in str(world.loop.unplaced[first])


def test_a_job_that_weighs_more_gets_more() -> None:
    world = world_with(8)
    plain, heavy = world.submit(**WIDE), world.submit(**WIDE, weight=2.0)
    world.run(10.0)
    assert widths(world, heavy)[0] > widths(world, plain)[0] >= 1


def test_a_job_with_a_deadline_gets_more_until_it_has_passed() -> None:
    world = world_with(8)
    plain, due = world.submit(**WIDE), world.submit(**WIDE, deadline_s=7200.0)
    world.run(10.0)
    assert widths(world, due)[0] > widths(world, plain)[0] >= 1
    assert "due in 2.0 h" in str(world.loop.unplaced[due])


def test_a_deadline_that_has_passed_is_refused() -> None:
    world = world_with(1)
    with pytest.raises(Refused, match="deadline: it passed 4 s ago"):
        world.inventory.apply(submit_event("late", at_s=world.clock.now_s(), deadline_s=world.clock.now_s() - 4))


def test_a_budget_is_what_a_job_may_use_in_all() -> None:
    world = world_with(2)
    job = world.submit(**WIDE, budget_device_s=600.0)
    other = world.submit(needs=(RoleNeed(Role.TRAINER, 1, 1),))
    world.run(120.0, step_s=10.0)
    assert world.job(job).state is JobState.RUNNING
    world.run(900.0, step_s=10.0)
    assert world.job(job).state is JobState.PARKED
    assert "has used its budget of 0.166667 device-hours" in str(world.loop.unplaced[job])
    (spent_s,) = [spent for of, spent in world.inventory.snapshot(world.clock.now_s()).spent if of == job]
    assert 600 <= spent_s <= 720, "it is looked at twice a minute"
    assert world.job(other).state is JobState.RUNNING


SPEC = "kind: task\nname: t\ntask: {command: [ls], output: /o}\n"


def test_the_spec_carries_them_to_the_planner() -> None:
    text = SPEC + "priority: 2\ndeadline: 2026-12-01T18:00:00+01:00\nbudget_device_hours: 1.5\ndevice_kinds: [h100]\n"
    spec = parse_yaml(text)
    assert parse_json(spec.model_dump_json()) == spec, "as it travels"
    event = submitted(spec, spec.model_dump_json(), "j", "ada", "r", time.time(), "c")
    assert (event.priority, event.budget_device_s, event.device_kinds) == (2, 5400.0, ("h100",))
    assert event.deadline_s == 1796144400.0


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("deadline: 2026-12-01T18:00:00", "deadline: must be a time with its zone"),
        ("deadline: tomorrow", "deadline: must be a time with its zone"),
        ("priority: 9", "priority:"),
        ("budget_device_hours: 0", "budget_device_hours:"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(line: str, problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        parse_yaml(SPEC + line + "\n")


def test_left_out_they_change_nothing() -> None:
    spec = parse_yaml(SPEC)
    assert isinstance(spec, JobSpec)
    assert (spec.priority, spec.deadline, spec.budget_device_hours, spec.device_kinds) == (0, None, None, [])


# --- shares --------------------------------------------------------------------------------------------------------


def test_who_had_much_of_late_gets_less() -> None:
    world = world_with(8)
    had = world.submit(**WIDE, user="ada")
    world.run(3600.0, step_s=60.0)
    had_nothing = world.submit(**WIDE, user="ben")
    world.run(60.0, step_s=10.0)
    ada, ben = widths(world, had, had_nothing)
    assert ben > ada >= 1


def test_what_was_used_long_ago_counts_less() -> None:
    shares = Shares()
    shares.note({"ada": 8_000_000}, 0.0)
    shares.note({"ada": 8_000_000, "ben": 1_000_000}, 3 * HALF_LIFE_S)
    assert {usage.user: usage.device_s for usage in shares.usages()} == pytest.approx({"ada": 1.0, "ben": 1.0})


# --- the floor -----------------------------------------------------------------------------------------------------


def test_no_job_starves() -> None:
    """A job that scales badly and counts little is outbid by one that could use everything; it still gets its turns."""
    world = world_with(8)
    greedy = world.submit(
        needs=(RoleNeed(Role.TRAINER, 1, 8),), curve=tuple((n, float(n)) for n in range(1, 9)), weight=4.0
    )
    poor = world.submit(needs=(RoleNeed(Role.TRAINER, 2, 2),), curve=((2, 1.1),))
    world.run(8 * 3600.0, step_s=60.0)
    starts = [row.at_s for row in world.store.rows if row.job == poor and row.message.startswith("start: ")]
    assert len(starts) >= 2, "it had its first turn, was outbid, and had another"
    assert max(b - a for a, b in itertools.pairwise(starts)) < 4 * 3600
    assert world.job(greedy).width >= 6


def test_turns_are_as_long_as_the_wait_for_them() -> None:
    """Three jobs want one node. Each first start comes at once; then each turn lasts, and all get theirs."""
    world = world_with(1)
    jobs = [world.submit(needs=(RoleNeed(Role.TRAINER, 1, 1),)) for _ in range(3)]
    world.run(16 * 3600.0, step_s=60.0)
    starts = [(row.at_s, row.job) for row in world.store.rows if row.message.startswith("start: revision ")]
    first, later = starts[: len(jobs)], starts[len(jobs) :]
    assert [job for _, job in first] == jobs
    assert first[-1][0] < 120
    turns = [after_s - at_s for (at_s, _), (after_s, _) in itertools.pairwise(later)]
    assert len(turns) >= 12
    assert min(turns) >= TURN_S
    assert max(turns) < TURN_S + 120
    assert [job for _, job in later] == [jobs[turn % len(jobs)] for turn in range(len(later))], (
        "nobody waits for longer"
    )
