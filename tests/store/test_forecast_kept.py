"""What the scheduler has learnt of its sites survives its death: the forecast is the one before."""

from __future__ import annotations

import pytest

from scheduler.domain.plan import Outlook
from scheduler.inventory import Inventory
from scheduler.store import sql_store
from scheduler.store.sql_store import SqlStore
from tests.scheduler.world import World


def used_world(store: SqlStore) -> World:
    """Nodes of two sites have come and gone for two days; some are there still."""
    world = World()
    world.store = store  # type: ignore[assignment]
    world.loop._store = store
    for site in ("s", "t"):
        world.add_site(site)
    nodes = [*world.add_nodes(4, "s", prefix="s"), *world.add_nodes(3, "t", prefix="t")]
    for turn in range(40):
        world.run(900.0 + 700 * (turn % 5), step_s=2000.0)
        node = nodes[turn * 3 % len(nodes)]
        if turn % 7 == 6:
            world.twin.kill(node)
        elif world.inventory.live_lease(node):
            world.twin.owner_reclaims(node, 5.0)
            world.run(60.0, step_s=20.0)
            world.twin.owner_lends(node)
    world.run(60.0, step_s=20.0)
    return world


def outlooks(inventory: Inventory, now_s: float) -> dict[str, Outlook]:
    """What it says now, learnt anew."""
    for past in inventory._records.pasts.values():
        past._learnt_s = None
    return {outlook.site: outlook for outlook in inventory.snapshot(now_s).outlooks}


def test_the_forecast_after_a_restart_is_the_one_before(store: SqlStore, url: str) -> None:
    world = used_world(store)
    now_s = world.clock.now_s()
    before = outlooks(world.inventory, now_s)
    assert set(before) == {"s", "t"}
    assert before["s"] != before["t"], "something was learnt"
    store.close()
    again = SqlStore(url)
    after = outlooks(Inventory.restore(again.load()), now_s)
    again.close()
    for site, outlook in before.items():
        assert after[site].gap_s == pytest.approx(outlook.gap_s)
        assert after[site].hazard_per_s == pytest.approx(outlook.hazard_per_s)


def test_of_very_many_leases_the_newest_are_read(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    used_world(store)
    every = store.load().ended
    assert [lease.ended_s for lease in every] == sorted(lease.ended_s or 0.0 for lease in every)
    monkeypatch.setattr(sql_store, "ENDED_LEASES_LOADED", 5)
    assert store.load().ended == every[-5:]
