"""Served models get as many engines as their clients need, on spare devices, and none while nobody asks."""

from __future__ import annotations

from scheduler.domain import events
from scheduler.domain.jobs import JobState, Role, RoleNeed
from tests.scheduler.world import SERVE, World

ENGINES = {**SERVE, "needs": (RoleNeed(Role.ENGINE, 1, 3), RoleNeed(Role.SHARD, 2, 2)), "wanted": ((Role.ENGINE, 1),)}


def served(nodes: int = 6) -> tuple[World, str]:
    """A model that runs with one engine, and spare nodes."""
    world = World()
    world.add_site()
    world.add_nodes(nodes)
    job = world.submit(**ENGINES)
    world.run(10)
    return world, job


def say(world: World, job: str, engines: int, seconds: float = 5.0) -> None:
    """Its site says how many engines it could use."""
    now = world.job(job)
    said = {"step": 1, "total": 0, "loss": 0.0, "rate": 10.0, "rate_unit": "tokens/s", "width": now.width}
    wanted = ((Role.ENGINE, engines),)
    world.loop.post(events.JobProgressed(at_s=world.clock.now_s(), job=job, wanted=wanted, **said))
    world.run(seconds)


def roles(world: World, job: str) -> list[str]:
    """Roles of its workers."""
    assignment = world.job(job).assignment
    return sorted(slot.role.value for slot in assignment.workers) if assignment else []


def test_it_starts_with_the_fewest_engines_and_waits_for_nothing() -> None:
    world, job = served()
    assert roles(world, job) == ["engine", "shard", "shard"]
    assert job not in world.loop.unplaced


def test_engines_follow_what_it_could_use() -> None:
    world, job = served()
    kept = {slot.worker for slot in world.job(job).assignment.workers}
    for engines, told in ((2, 2), (9, 3), (1, 1)):
        say(world, job, engines)
        assert roles(world, job).count("engine") == told
        assert world.job(job).useful_width == told + 2
    assert roles(world, job).count("shard") == 2
    assert len(kept & {slot.worker for slot in world.job(job).assignment.workers}) >= 2
    assert world.job(job).state is JobState.RUNNING


def test_further_engines_take_only_spare_devices() -> None:
    world, job = served(nodes=4)
    say(world, job, 3)
    assert roles(world, job).count("engine") == 2
    assert "engine" not in str(world.loop.unplaced[job].code)
    other = world.submit(name="train", needs=(RoleNeed(Role.TRAINER, 1, 1),))
    world.run(10)
    assert roles(world, other) == ["trainer"]
    assert roles(world, job).count("engine") == 1


def test_a_sleeping_model_frees_all_its_devices_and_comes_back_when_asked() -> None:
    world, job = served(nodes=3)
    train = world.submit(name="train", needs=(RoleNeed(Role.TRAINER, 1, 3),))
    world.run(5)
    assert world.job(train).width == 0
    say(world, job, 0)
    assert world.job(job).state is JobState.PARKED
    assert world.loop.unplaced[job].code == "asleep"
    assert world.job(train).width == 3
    say(world, job, 1, seconds=10)
    assert roles(world, job) == ["engine", "shard", "shard"]
    assert world.job(job).state is JobState.RUNNING


def test_what_it_could_use_survives_the_scheduler() -> None:
    world, job = served()
    say(world, job, 0)
    world.crash()
    world.run(10)
    assert world.job(job).state is JobState.PARKED
    assert world.job(job).wanted == ((Role.ENGINE, 0),)
    assert world.job(job).useful_width == 0


def test_its_rate_says_nothing_of_a_width() -> None:
    world, job = served()
    say(world, job, 2)
    assert world.job(job).curve == ()
