"""The planner as a user meets it: stable, whole, with reasons; and law 6, the same snapshot gives the same plan."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain import events
from scheduler.domain.cluster import LeaseState
from scheduler.domain.jobs import JobState, ModelShape, Role, RoleNeed
from scheduler.domain.plan import Assign, Snapshot
from scheduler.domain.reasons import Reason
from scheduler.planning.plan import plan
from tests.scheduler.world import GIB, SERVE, SHAPE, World

TWO_TO_FOUR = (RoleNeed(Role.TRAINER, 2, 4),)


def running_world(nodes: int = 4, **job: object) -> tuple[World, str, list[str]]:
    """A world in which one job has settled."""
    world = World()
    world.add_site()
    names = world.add_nodes(nodes)
    name = world.submit(**job)
    world.run(10.0)
    return world, name, names


def reason(world: World, job: str) -> str:
    return str(world.loop.unplaced[job])


# --- law 6 ---------------------------------------------------------------------------------------------------------


def _mixed_world(seed: int) -> World:
    rng = random.Random(seed)
    world = World(warmup_s=rng.choice([0.0, 1.0, 5.0]))
    world.add_site("s")
    world.add_site("t")
    for _ in range(rng.randint(1, 3)):
        world.add_nodes(
            rng.randint(1, 4), site=rng.choice("st"), each=rng.randint(1, 2), kind=rng.choice(["cpu", "gpu"])
        )
        world.run(rng.choice([0.5, 3.0, 70.0]), step_s=5.0)
    for _ in range(rng.randint(1, 4)):
        least = rng.randint(1, 3)
        needs = (RoleNeed(Role.TRAINER, least, least + rng.randint(0, 4)),)
        world.submit(**rng.choice([SERVE, {"needs": needs, "shape": SHAPE}, {"needs": needs}]))
    world.run(rng.choice([0.0, 2.0]))
    for node in sorted(world.inventory.nodes):
        if rng.random() < 0.3:
            rng.choice([world.twin.kill, lambda n: world.twin.owner_reclaims(n, 9.0)])(node)
    world.twin.play(world.clock.now_s())
    world.take_in()
    return world


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_same_snapshot_gives_the_same_plan_in_any_order(seed: int, rng: random.Random) -> None:
    snapshot = _mixed_world(seed).inventory.snapshot(100.0)

    def shuffled(items: tuple) -> tuple:
        return tuple(rng.sample(items, len(items)))

    other = replace(
        snapshot,
        leases=shuffled(snapshot.leases),
        jobs=shuffled(snapshot.jobs),
        workers=shuffled(snapshot.workers),
        connected_sites=shuffled(snapshot.connected_sites),
        suspect=shuffled(snapshot.suspect),
    )
    assert plan(snapshot) == plan(snapshot)
    assert plan(other) == plan(snapshot)


# --- stability -----------------------------------------------------------------------------------------------------


def test_nothing_to_change_means_no_steps() -> None:
    world, job, _ = running_world(needs=TWO_TO_FOUR)
    assert world.job(job).width == 4
    assert plan(world.inventory.snapshot(world.clock.now_s())).steps == ()


def test_noise_in_rates_moves_nothing() -> None:
    world, _, _ = running_world(6, needs=TWO_TO_FOUR)
    world.submit(needs=TWO_TO_FOUR)
    world.run(20.0)
    snapshot = world.inventory.snapshot(world.clock.now_s())
    for factor in (0.99, 1.01):
        noisy = tuple(
            replace(job, curve=((2, 2.0 * factor), (3, 2.9 / factor), (4, 3.7 * factor))) for job in snapshot.jobs
        )
        assert plan(replace(snapshot, jobs=noisy)).steps == ()


def test_workers_that_stay_keep_place_and_id() -> None:
    world, job, names = running_world(needs=TWO_TO_FOUR, shape=SHAPE)
    before = {slot.worker: slot for slot in world.job(job).assignment.workers}
    world.twin.owner_reclaims(names[0], 5.0)
    world.run(3.0)
    after = {slot.worker: slot for slot in world.job(job).assignment.workers}
    assert len(after) == 3
    assert all(before[worker].lease == slot.lease for worker, slot in after.items())
    assert all(set(before[worker].experts) <= set(slot.experts) for worker, slot in after.items())
    assert sorted(pair for slot in after.values() for pair in slot.experts) == [
        (layer, expert) for layer in range(2) for expert in range(4)
    ]


# --- reclaim and loss ----------------------------------------------------------------------------------------------


def test_a_draining_lease_is_left_by_its_deadline_and_released() -> None:
    world, job, names = running_world(needs=TWO_TO_FOUR)
    lease = world.inventory.live_lease(names[1])
    world.twin.owner_reclaims(names[1], 10.0)
    (step,) = _steps_of(world)
    assert (step.cause, step.deadline_s) == ("reclaim", world.clock.now_s() + 10.0)
    world.run(5.0)
    assert world.inventory.leases[lease.key].state is LeaseState.ENDED
    assert world.inventory.reclaims[-1].killed == 0
    assert world.inventory.reclaims[-1].free_s < 10.0
    assert world.job(job).losses_by_reclaim == 0


def test_below_minimum_it_is_parked_and_goes_on_when_there_are_nodes() -> None:
    world, job, names = running_world(2, needs=TWO_TO_FOUR)
    world.twin.kill(names[0])
    world.run(2.0)
    assert world.job(job).state is JobState.PARKED
    assert "needs 2 cpu devices at site s: 1 is idle" in reason(world, job)
    world.twin.owner_lends(names[0])
    world.run(5.0)
    assert world.job(job).state is JobState.RUNNING


def test_an_idle_node_takes_the_place_of_one_that_drains() -> None:
    world, job, names = running_world(5, needs=TWO_TO_FOUR)
    used = {slot.lease.node for slot in world.job(job).assignment.workers}
    world.twin.owner_reclaims(min(used), 10.0)
    world.run(3.0)
    assert world.job(job).width == 4
    assert {slot.lease.node for slot in world.job(job).assignment.workers} == set(names) - {min(used)}


# --- served models -------------------------------------------------------------------------------------------------


def _hosts(world: World, job: str) -> dict[tuple[int, int], set[str]]:
    hosts: dict[tuple[int, int], set[str]] = {}
    for slot in world.job(job).assignment.workers:
        for pair in slot.experts:
            hosts.setdefault(pair, set()).add(slot.lease.node)
    return hosts


def test_every_expert_has_its_copies_on_different_nodes() -> None:
    world, job, _ = running_world(4, **SERVE)
    hosts = _hosts(world, job)
    assert len(hosts) == SHAPE.layers * SHAPE.experts
    assert all(len(nodes) == 2 for nodes in hosts.values())


def test_copies_lie_in_different_cohorts() -> None:
    world = World()
    world.add_site()
    world.add_nodes(4)
    world.run(100.0, step_s=10.0)
    world.add_nodes(2)
    world.run(10.0)
    job = world.submit(**{**SERVE, "needs": (RoleNeed(Role.ENGINE, 1, 1), RoleNeed(Role.SHARD, 2, 2))})
    world.run(10.0)
    for nodes in _hosts(world, job).values():
        assert len({world.inventory.live_lease(node).cohort for node in nodes}) == 2


def test_copies_lie_where_nodes_last_and_a_quarter_of_two_is_spread_evenly() -> None:
    shape = ModelShape(layers=4, experts=16, expert_bytes=GIB // 64, dense_bytes=GIB // 2)
    world = World()
    world.add_site()
    old = {name for _ in range(4) for name in _a_cohort(world, 1)}
    for _ in range(5):  # who comes is gone after five minutes
        fleeting = world.add_nodes(20)
        world.run(300.0, step_s=100.0)
        for name in fleeting:
            world.twin.owner_reclaims(name, 0.0)
        world.run(1200.0, step_s=300.0)
    young = {name for _ in range(3) for name in _a_cohort(world, 1)}
    need = (RoleNeed(Role.ENGINE, 1, 1), RoleNeed(Role.SHARD, 2, 6))
    job = world.submit(**{**SERVE, "shape": shape, "needs": need})
    world.run(20.0)
    hosts = _hosts(world, job)
    held = Counter(node for nodes in hosts.values() for node in nodes)
    even = sum(held.values()) / len(held)
    assert all(len(nodes) == 2 for nodes in hosts.values())
    assert set(held) < old | young
    assert min(held.values()) >= even / 4 - shape.layers
    assert min(held[name] for name in old & set(held)) > even > max(held[name] for name in young)


def _a_cohort(world: World, count: int) -> list[str]:
    names = world.add_nodes(count)
    world.run(70.0, step_s=35.0)
    return names


def test_measured_loads_are_shared_out_at_the_next_rescale() -> None:
    shape = ModelShape(layers=2, experts=16, expert_bytes=GIB // 64, dense_bytes=GIB // 2)
    need = (RoleNeed(Role.ENGINE, 1, 1), RoleNeed(Role.SHARD, 2, 4))
    world, job, _ = running_world(5, **{**SERVE, "shape": shape, "needs": need, "copies": 1})
    busy = {(layer, expert): 10_000 if expert in (3, 7) else 100 for layer in range(2) for expert in range(16)}
    before = world.job(job).assignment
    world.loop.post(events.ExpertsLoaded(at_s=0, job=job, tokens=tuple(busy.values())))
    world.run(5.0)
    assert world.job(job).assignment == before, "nothing moves for news alone"
    shard = next(s for s in before.workers if s.role is Role.SHARD)
    world.twin.owner_reclaims(shard.lease.node, 10.0)
    world.run(20.0)
    hosts = _hosts(world, job)
    load: dict[str, float] = {}
    for pair, nodes in hosts.items():
        for node in nodes:
            load[node] = load.get(node, 0.0) + busy[pair] / len(nodes)
    assert len(hosts) == 32
    assert sum(map(len, hosts.values())) == 32 + 8
    assert max(load.values()) <= 1.1 * sum(load.values()) / len(load)


def test_a_served_model_keeps_every_expert_when_a_shard_cannot_be_replaced() -> None:
    need = (RoleNeed(Role.ENGINE, 1, 1), RoleNeed(Role.SHARD, 1, 3))
    world, job, _ = running_world(3, **{**SERVE, "needs": need})
    shard = next(s for s in world.job(job).assignment.workers if s.role is Role.SHARD)
    world.twin.owner_reclaims(shard.lease.node, 10.0)
    world.run(3.0)
    assert world.job(job).state is JobState.RUNNING
    assert len(_hosts(world, job)) == SHAPE.layers * SHAPE.experts


def test_an_engine_takes_the_place_of_a_shard_where_no_node_is_idle() -> None:
    world, job, _ = running_world(4, **SERVE)
    assert world.job(job).width == 4
    engine = next(s for s in world.job(job).assignment.workers if s.role is Role.ENGINE)
    world.twin.owner_reclaims(engine.lease.node, 10.0)
    world.run(5.0)
    roles = sorted(str(slot.role) for slot in world.job(job).assignment.workers)
    assert roles == ["engine", "shard", "shard"]
    assert world.job(job).state is JobState.RUNNING
    assert not any(record.killed for record in world.inventory.reclaims)
    assert not [row for row in world.store.rows if row.message.startswith("reclaim: ") and "width 0" in row.message]


def test_training_shrinks_for_a_served_model_but_not_below_its_minimum() -> None:
    world, train, _ = running_world(5, needs=(RoleNeed(Role.TRAINER, 2, 5),))
    assert world.job(train).width == 5
    serve = world.submit(**SERVE)
    world.run(10.0)
    assert world.job(serve).state is JobState.RUNNING
    assert world.job(train).width == 2
    late = world.submit(**SERVE)
    world.run(10.0)
    assert world.job(train).width == 2
    assert world.job(late).state is JobState.QUEUED


# --- reasons -------------------------------------------------------------------------------------------------------


def test_reasons_say_what_is_missing() -> None:
    world = World()
    job = world.submit(needs=TWO_TO_FOUR, device_kinds=("cpu",))
    world.run(1.0)
    assert "no site is connected" in reason(world, job)
    world.add_site()
    world.run(1.0)
    assert "needs 2 cpu devices; no node is lent" in reason(world, job)
    (name,) = world.add_nodes(1)
    world.run(5.0)
    assert "needs 2 cpu devices at site s: 1 is idle" in reason(world, job)
    world.twin.owner_reclaims(name, 60.0)
    blocked = world.submit(device_kinds=("gpu",))
    world.run(0.5)
    assert "needs 1 gpu devices; there are cpu" in reason(world, blocked)


def test_a_model_too_large_for_the_devices_is_refused_with_numbers() -> None:
    shape = ModelShape(layers=4, experts=8, expert_bytes=GIB, dense_bytes=GIB)
    world, job, _ = running_world(4, needs=TWO_TO_FOUR, shape=shape)
    assert world.job(job).state is JobState.QUEUED
    assert "a worker needs 9.00 GiB" in reason(world, job)
    assert "the largest lent device has 1.00 GiB" in reason(world, job)


def test_a_model_that_fits_only_when_wide_starts_wide() -> None:
    shape = ModelShape(layers=1, experts=4, expert_bytes=GIB // 4, dense_bytes=GIB // 2)
    world, job, names = running_world(4, needs=(RoleNeed(Role.TRAINER, 1, 4),), shape=shape)
    assert world.job(job).width == 4
    world.twin.kill(names[0])
    world.twin.kill(names[1])
    world.run(3.0)
    assert world.job(job).width == 2
    world.twin.kill(names[2])
    world.run(3.0)
    assert world.job(job).state is JobState.PARKED, "one worker alone cannot hold the model"


def test_a_refused_job_waits_and_is_tried_again() -> None:
    world, job, _ = running_world(2, needs=TWO_TO_FOUR)
    refusal = Reason("port_in_use", "port 8000 is in use.", "Choose another port.")
    revision = world.job(job).assignment_revision
    world.loop.post(events.AssignmentRefused(at_s=world.clock.now_s(), job=job, revision=revision, reason=refusal))
    world.run(2.0)
    assert world.job(job).state is JobState.PARKED
    assert reason(world, job) == str(refusal)
    world.run(15.0)
    assert world.job(job).state is JobState.RUNNING


def test_a_job_stays_at_its_site_and_moves_nothing_while_the_site_is_away() -> None:
    world, job, names = running_world(4, needs=TWO_TO_FOUR)
    world.twin.drop_site("s")
    world.add_site("t")
    world.add_nodes(4, site="t")
    world.twin.kill(names[0])
    world.run(5.0)
    assert {world.inventory.leases[s.lease].site for s in world.job(job).assignment.workers} == {"s"}
    assert "not connected" in reason(world, job)
    world.twin.open_site("s")
    world.run(5.0)
    assert world.job(job).width == 3
    assert world.job(job).state is JobState.RUNNING


def _steps_of(world: World) -> list[Assign]:
    """The steps that the loop would take now."""
    world.take_in()
    snapshot: Snapshot = world.inventory.snapshot(world.clock.now_s())
    steps = [step for step in plan(snapshot).steps if isinstance(step, Assign)]
    world.turn()
    return steps
