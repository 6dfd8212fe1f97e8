"""Leases, epochs and books, event by event."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain import events
from scheduler.domain.cluster import LeaseKey, LeaseState, NodeState
from scheduler.domain.jobs import JobState, Role, RoleNeed
from scheduler.domain.ledger import AccountKey, Books, Use
from scheduler.domain.reasons import Refused
from scheduler.inventory import Inventory
from tests.scheduler.world import SERVE, SHAPE, World, devices

TWO_TO_FOUR = (RoleNeed(Role.TRAINER, 2, 4),)


def hello(node: str = "n", instance: str = "a", epoch: int = 0, at_s: float = 0.0) -> events.AgentConnected:
    return events.AgentConnected(
        at_s=at_s, node=node, site="s", instance=instance, address="h", devices=devices(2), epoch=epoch
    )


def report(
    node: str = "n", instance: str = "a", epoch: int = 0, spare: bool = True, **more: object
) -> events.NodeReported:
    fields: dict[str, object] = {"at_s": 0.0, "source": "host", "reason": "", "grace_s": 30.0, **more}
    spare_devices = ("cpu:0", "cpu:1") if spare else ()
    return events.NodeReported(
        node=node,
        instance=instance,
        epoch=epoch,
        spare_devices=spare_devices,
        **fields,  # type: ignore[arg-type]
    )


def lent(at_s: float = 0.0) -> tuple[Inventory, LeaseKey]:
    inventory = Inventory(lease_ttl_s=20.0)
    inventory.apply(hello(at_s=at_s))
    inventory.apply(report(at_s=at_s))
    return inventory, inventory.live_lease("n").key  # type: ignore[union-attr]


# --- leases and agents -------------------------------------------------------------------------------------------


def test_a_spare_node_is_leased_with_a_new_epoch_and_waits_for_its_site() -> None:
    inventory, key = lent()
    assert inventory.leases[key].state is LeaseState.GRANTED
    inventory.apply(
        events.SiteConnected(at_s=1, site="s", instance="i", ray_address="r:1", ray_token="t", ray_version="2")
    )
    assert inventory.leases[key].state is LeaseState.JOINING
    assert [type(effect).__name__ for effect in inventory.take_effects()] == ["Grant", "Join"]


def test_epochs_grow_over_all_nodes() -> None:
    inventory, first = lent()
    inventory.apply(hello("m", "b"))
    inventory.apply(report("m", "b"))
    inventory.apply(events.NodeLeft(at_s=1, lease=first, cause="reclaimed", free_s=0.1, killed=0))
    inventory.apply(report(at_s=2))
    epochs = [lease.key.epoch for lease in inventory.leases.values()]
    assert sorted(epochs) == [1, 2, 3]


def test_a_second_agent_is_refused_while_the_first_is_connected() -> None:
    inventory, key = lent()
    with pytest.raises(Refused, match="already has a connected agent") as refused:
        inventory.apply(hello(instance="b"))
    assert refused.value.reason.code == "already_registered"
    assert inventory.leases[key].is_live
    inventory.apply(events.AgentDisconnected(at_s=1, node="n", instance="a"))
    inventory.apply(hello(instance="b", at_s=2))
    assert not inventory.leases[key].is_live, "a new agent without the epoch: the old lease is lost"


def test_an_agent_that_comes_back_with_its_epoch_keeps_its_lease() -> None:
    inventory, key = lent()
    inventory.apply(events.AgentDisconnected(at_s=5, node="n", instance="a"))
    assert inventory.nodes["n"].state is NodeState.SUSPECT
    assert inventory.snapshot(5).suspect == (key,)
    inventory.apply(events.Tick(at_s=24.9))
    inventory.apply(hello(epoch=key.epoch, at_s=24.9))
    assert inventory.nodes["n"].state is NodeState.LENT
    inventory.apply(events.Tick(at_s=60))
    assert inventory.leases[key].is_live


def test_an_agent_that_stays_away_loses_its_lease() -> None:
    inventory, key = lent()
    inventory.apply(events.AgentDisconnected(at_s=5, node="n", instance="a"))
    inventory.apply(events.Tick(at_s=25.1))
    assert inventory.nodes["n"].state is NodeState.LOST
    assert not inventory.leases[key].is_live
    inventory.take_effects()
    inventory.apply(hello(epoch=key.epoch, at_s=30))
    (leave,) = inventory.take_effects()
    assert type(leave).__name__ == "Leave", "it is told that its lease is over"
    inventory.apply(report(epoch=key.epoch, at_s=31))
    assert inventory.live_lease("n") is None, "no new lease while it holds on to an old one"
    inventory.apply(report(at_s=32))
    assert inventory.live_lease("n")


def test_a_raylet_that_dies_while_the_agent_is_away_ends_the_lease_at_once() -> None:
    inventory, key = lent()
    inventory.apply(events.AgentDisconnected(at_s=5, node="n", instance="a"))
    inventory.apply(events.NodeGone(at_s=6, lease=key))
    assert not inventory.leases[key].is_live


def test_a_report_of_a_past_epoch_has_no_effect_but_a_row() -> None:
    inventory, key = lent()
    inventory.take_changes()
    inventory.apply(report(epoch=key.epoch + 5, spare=False))
    assert inventory.nodes["n"].spare_devices == ("cpu:0", "cpu:1")
    assert [row.kind for row in inventory.take_changes().log] == ["fenced"]


def test_a_heartbeat_without_news_is_not_saved() -> None:
    inventory, key = lent()
    inventory.take_changes()
    version = inventory.version
    inventory.apply(report(epoch=key.epoch, at_s=9.0, agent_rss_bytes=1e6))
    assert inventory.take_changes().is_empty
    assert inventory.version == version
    assert inventory.nodes["n"].last_report_s == 9.0


def test_an_earlier_deadline_stands() -> None:
    inventory, key = lent()
    for deadline_s in (50.0, 20.0, 90.0):
        inventory.apply(events.NodeReclaimed(at_s=1, lease=key, deadline_s=deadline_s, grace_s=1, cause="owner"))
    assert inventory.leases[key].deadline_s == 20.0


def test_a_lease_whose_end_is_known_drains_in_time() -> None:
    inventory = Inventory()
    inventory.apply(hello())
    inventory.apply(report(expected_end_s=100.0, grace_s=15.0))
    key = inventory.live_lease("n").key  # type: ignore[union-attr]
    inventory.apply(events.Tick(at_s=84.0))
    assert inventory.leases[key].state is LeaseState.GRANTED
    inventory.apply(events.Tick(at_s=85.0))
    assert inventory.leases[key].state is LeaseState.DRAINING
    assert inventory.leases[key].deadline_s == 100.0


def test_an_operators_drain_reaches_the_agent() -> None:
    inventory, key = lent()
    inventory.take_effects()
    inventory.apply(events.DrainRequested(at_s=1, node="n", grace_s=30, cause="maintenance"))
    (asked,) = inventory.take_effects()
    assert (type(asked).__name__, asked.grace_s) == ("AskReclaim", 30)  # type: ignore[union-attr]
    assert inventory.leases[key].state is LeaseState.DRAINING


def test_a_node_whose_raylet_cannot_start_is_tried_again_later_each_time() -> None:
    inventory, key = lent()
    waits = []
    now_s = 0.0
    for _ in range(3):
        inventory.apply(events.RayletStarted(at_s=now_s, lease=key, error="port in use"))
        inventory.apply(events.NodeLeft(at_s=now_s, lease=key, cause="released", free_s=0, killed=0))
        inventory.apply(report(at_s=now_s))
        failed_s = now_s
        while inventory.live_lease("n") is None:
            now_s += 1.0
            inventory.apply(events.Tick(at_s=now_s))
        waits.append(now_s - failed_s)
        key = inventory.live_lease("n").key  # type: ignore[union-attr]
    assert waits == [10.0, 20.0, 40.0]


def test_cohorts_are_what_became_idle_together() -> None:
    inventory = Inventory()
    cohorts = []
    for number, at_s in enumerate((0.0, 30.0, 59.0, 61.0, 120.0)):
        inventory.apply(hello(f"n{number}", at_s=at_s))
        inventory.apply(report(f"n{number}", at_s=at_s))
        cohorts.append(inventory.live_lease(f"n{number}").cohort)  # type: ignore[union-attr]
    assert len(set(cohorts)) == 2
    assert cohorts[0] == cohorts[2] != cohorts[3] == cohorts[4]


def test_a_new_ray_cluster_takes_the_old_ones_workers_with_it() -> None:
    world = World()
    world.add_site()
    world.add_nodes(2)
    job = world.submit(needs=TWO_TO_FOUR)
    world.run(5.0)
    at_s = world.clock.now_s()
    world.inventory.apply(events.SiteDisconnected(at_s=at_s, site="s", instance="s-twin"))
    world.inventory.apply(
        events.SiteConnected(at_s=at_s, site="s", instance="2", ray_address="s:9", ray_token="t", ray_version="2")
    )
    assert {lease.state for lease in world.inventory.leases.values()} == {LeaseState.JOINING}
    world.turn()
    assert world.job(job).state is JobState.PARKED
    world.inventory.check()


# --- jobs --------------------------------------------------------------------------------------------------------


def test_cancelling_a_waiting_job_ends_it_and_a_second_cancel_changes_nothing() -> None:
    world = World()
    job = world.submit(needs=TWO_TO_FOUR)
    for _ in range(2):
        world.loop.post(events.CancelRequested(at_s=0, job=job, user="ada"))
        world.run(1.0)
    assert world.job(job).state is JobState.CANCELLED


def test_cancelling_a_running_job_frees_its_nodes() -> None:
    world = World()
    world.add_site()
    world.add_nodes(2)
    job = world.submit(needs=TWO_TO_FOUR)
    world.run(5.0)
    world.loop.post(events.CancelRequested(at_s=5, job=job, user="ada"))
    world.run(2.0)
    assert world.job(job).state is JobState.CANCELLED
    assert not world.inventory.workers


def test_curves_and_costs_are_learnt() -> None:
    world = World()
    world.add_site()
    names = world.add_nodes(4)
    job = world.submit(needs=TWO_TO_FOUR)
    world.run(5.0)
    world.twin.owner_reclaims(names[0], 5.0)
    world.run(5.0)
    assert world.job(job).curve == ((3, 3.0), (4, 4.0))
    assert [(r.cause, r.width) for r in world.job(job).rescales] == [("start", 4), ("reclaim", 3)]


def test_a_restarted_site_that_says_anew_what_it_reached_counts_no_rescale() -> None:
    world = World()
    world.add_site()
    world.add_nodes(2)
    job = world.submit(needs=TWO_TO_FOUR)
    world.run(5.0)
    world.add_nodes(1, prefix="later")
    world.run(5.0)
    before = world.job(job)
    assert [(r.cause, r.width) for r in before.rescales] == [("start", 2), ("grow", 3)]
    said = events.AssignmentReached(
        at_s=world.clock.now_s(), job=job, revision=before.reached_revision, cause="grow", width=3, stall_s=0.0
    )
    world.loop.post(said)
    world.turn()
    assert world.job(job).rescales == before.rescales


def test_losses_by_reclaim_and_lost_steps_are_counted() -> None:
    world = World()
    world.add_site()
    names = world.add_nodes(3)
    job = world.submit(needs=TWO_TO_FOUR)
    world.run(30.0)
    world.loop.post(events.WorkLost(at_s=0, job=job, steps=7, seconds=2.0, cause="loss"))
    world.turn()
    world.twin.owner_reclaims(names[0], 0.0)
    world.twin.play(world.clock.now_s())
    world.run(5.0)
    lost_us = sum(a.lost_us for a in world.inventory.accounts.values())
    assert lost_us == 3 * 2_000_000
    assert world.job(job).steps_lost == 7
    assert [(r.cause, r.width, r.steps_lost) for r in world.job(job).rescales] == [("start", 3, 0), ("loss", 2, 7)]


def test_newer_loads_of_experts_count_more_and_end_with_their_job() -> None:
    world = World()
    world.add_site()
    world.add_nodes(3)
    job = world.submit(**SERVE)
    pairs = SHAPE.layers * SHAPE.experts
    for tokens in ([100] * pairs, [1] * pairs, [7] * (pairs + 1)):  # the last is of another model
        world.loop.post(events.ExpertsLoaded(at_s=0, job=job, tokens=tuple(tokens)))
    world.turn()
    assert world.inventory.snapshot(0.0).expert_loads == ((job, (91.0,) * pairs),)
    world.loop.post(events.CancelRequested(at_s=0, job=job, user="ada"))
    world.run(10.0)
    world.loop.post(events.ExpertsLoaded(at_s=0, job=job, tokens=(1,) * pairs))
    world.turn()
    assert world.inventory.snapshot(0.0).expert_loads == ()


# --- the books ---------------------------------------------------------------------------------------------------


LINE, IDLE = AccountKey("s", "n", "j", "ada"), AccountKey("s", "n", "", "")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["useful", "rescale", "idle", "stall", "lose", "settle"]),
            st.sampled_from(["a", "b"]),
            st.floats(0, 50),
        ),
        max_size=30,
    )
)
def test_books_balance_whatever_is_reported(happenings: list[tuple[str, str, float]]) -> None:
    books, now_s = Books(), 1e9
    books.open("n/1", IDLE, ("a", "b"), now_s)
    for what, device, seconds in happenings:
        now_s += seconds / 3
        if what == "stall":
            books.shift("j", {"n": 2, "elsewhere": 1}, "useful", "rescale", seconds)
        elif what == "lose":
            books.shift("j", {"n": 1}, "useful", "lost", seconds)
        elif what == "settle":
            books.settle("n/1", now_s)
        else:
            books.use("n/1", device, IDLE if what == "idle" else LINE, Use(what), now_s)
        books.check()
    books.close("n/1", now_s)
    books.check()
    borrowed_us = sum(account.borrowed_us for account in books.accounts.values())
    assert borrowed_us == 2 * (round(now_s * 1e6) - round(1e9 * 1e6))


def test_a_shift_takes_never_more_than_there_is() -> None:
    books = Books()
    books.open("n/1", IDLE, ("a",), 0.0)
    books.use("n/1", "a", LINE, Use.USEFUL, 0.0)
    books.settle("n/1", 3.0)
    assert books.shift("j", {"n": 1}, "useful", "lost", 10.0) == 3_000_000
    assert books.accounts[LINE].lost_us == 3_000_000
    assert books.accounts[LINE].useful_us == 0


def test_energy_is_booked_where_the_devices_are() -> None:
    inventory, key = lent()
    inventory.apply(report(epoch=key.epoch, energy_j=10.0))
    inventory.apply(report(epoch=key.epoch, energy_j=16.0))
    assert sum(account.energy_mj for account in inventory.accounts.values()) == 16_000
