"""What an open page is sent: everything once, then only what changed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, cast
from unittest.mock import Mock

import httpx

from scheduler.clock import ManualClock
from scheduler.control_loop import ControlLoop
from scheduler.domain import events
from scheduler.domain.cluster import Lease, LeaseKey, LeaseState, Node, NodeState, ReclaimRecord, Site
from scheduler.domain.jobs import JobKind, Role, RoleNeed
from scheduler.domain.plan import Plan, Snapshot, Unplaced
from scheduler.domain.reasons import Reason
from scheduler.executor import Executor
from scheduler.inventory import Inventory
from scheduler.status_page.app import create_app
from scheduler.status_page.feed import Feed, Viewer
from scheduler.store.port import MemoryStore
from tests.status_page.scenario import Afternoon, FakeInventory, FakeLoop, advance, devices
from tests.status_page.serving import open_to_all, served

NOW = 1_800_000_000.0


def afternoon() -> tuple[FakeLoop, Feed, ManualClock]:
    clock, loop = ManualClock(NOW), Afternoon(NOW).build()
    return loop, Feed(cast(Any, loop), clock), clock


def tick(feed: Feed, clock: ManualClock) -> None:
    clock.advance_to(clock.now_s() + 1)
    feed.sample()


async def test_first_everything_then_only_what_changed() -> None:
    loop, feed, clock = afternoon()
    tick(feed, clock)
    async with aclosing(feed.messages()) as messages:
        whole = json.loads(await anext(messages))
        assert set(whole) >= {"now", "totals", "sites", "map", "jobs", "job_order", "unplaced", "history", "events"}
        assert len(whole["jobs"]) == 9
        advance(loop.inventory, "j-0001", 10, 2.1)
        tick(feed, clock)
        delta = json.loads(await anext(messages))
    assert set(delta) == {"now", "jobs", "history"}
    assert list(delta["jobs"]) == ["j-0001"]
    assert list(delta["history"]) == ["600"]


async def test_without_a_viewer_only_history_and_curves_are_kept_up() -> None:
    _, feed, clock = afternoon()
    for _ in range(3):
        tick(feed, clock)
    assert feed.sections == {}
    assert len(feed.history.rows_after(None)[600]) == 2
    async with aclosing(feed.messages()) as messages:
        assert json.loads(await anext(messages))["totals"]["nodes"] == 200
    feed.sections = {}
    tick(feed, clock)
    assert feed.sections == {}


async def test_a_slow_reader_misses_nothing() -> None:
    loop, feed, clock = afternoon()
    tick(feed, clock)
    async with aclosing(feed.messages()) as messages:
        whole = json.loads(await anext(messages))
        for _ in range(5):
            advance(loop.inventory, "j-0002", 1, 1.2)
            tick(feed, clock)
        late = json.loads(await anext(messages))
    assert late["jobs"]["j-0002"]["step"] == whole["jobs"]["j-0002"]["step"] + 5
    assert len(whole["history"]["600"]) + len(late["history"]["600"]) == 5


async def test_reclaims_are_counted_once_and_not_those_from_before_the_start() -> None:
    loop, feed, clock = afternoon()
    tick(feed, clock)
    loop.inventory.reclaims = (*loop.inventory.reclaims, *(ReclaimRecord("r1", NOW, 10.0, 0.3, "c", 0),) * 1)
    for _ in range(3):
        tick(feed, clock)
    assert [row[4] for row in feed.history.rows_after(None)[600]] == [0, 1, 0]


def test_five_thousand_nodes_fit_in_a_small_message() -> None:
    loop = FakeLoop(FakeInventory())
    for site in ("one", "two", "three", "four", "five"):
        loop.inventory.sites[site] = Site(site, connected=True)
        for i in range(1000):
            node = Node(f"{site}-n{i:04d}", site, NodeState.LENT, devices(8))
            loop.inventory.nodes[node.id] = node
            key = LeaseKey(node.id, i)
            loop.inventory.leases[key] = Lease(key, site, LeaseState.READY, node.devices, "", NOW, f"{site}@{i // 50}")
    clock = ManualClock(NOW)
    feed, viewer = Feed(cast(Any, loop), clock), Viewer()
    feed.refresh()
    assert len(viewer.update(feed)) < 120_000
    loop.inventory.nodes["one-n0001"] = replace(loop.inventory.nodes["one-n0001"], state=NodeState.SUSPECT)
    loop.inventory.version += 1
    feed.refresh()
    assert len(viewer.update(feed)) < 20_000


# --- with the real control loop -------------------------------------------------------------------------------------

REASON = Reason("too_few_devices", "It needs 8 devices, 2 are lent.", "Lend more nodes.")


def planner(snapshot: Snapshot) -> Plan:
    return Plan(snapshot.version, (), tuple(Unplaced(job.id, REASON) for job in snapshot.jobs))


@asynccontextmanager
async def real_loop() -> AsyncIterator[tuple[ControlLoop, httpx.AsyncClient]]:
    """A control loop, and a client of its page."""
    clock = ManualClock(NOW)
    loop = ControlLoop(Inventory(), MemoryStore(), Mock(spec=Executor), clock, planner)
    app = create_app(loop, open_to_all, clock)
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")
        async with client:
            yield loop, client


def connect_node(loop: ControlLoop) -> None:
    stamp = {"at_s": NOW, "cause_id": "test-1"}
    two = devices(2)
    loop.post(events.SiteConnected(site="s", instance="i", ray_address="a", ray_token="t", ray_version="2.60", **stamp))  # type: ignore[arg-type]
    loop.post(events.AgentConnected(node="n1", site="s", instance="a", address="", devices=two, epoch=0, **stamp))  # type: ignore[arg-type]
    spare = tuple(device.id for device in two)
    loop.post(
        events.NodeReported(
            node="n1", instance="a", epoch=0, spare_devices=spare, source="host", reason="idle", grace_s=10.0, **stamp  # type: ignore[arg-type]
        )
    )  # fmt: skip


def submit(loop: ControlLoop, name: str = "hungry") -> None:
    needs = (RoleNeed(Role.TRAINER, 8, 16),)
    loop.post(
        events.JobSubmitted(
            at_s=NOW, cause_id="test-2", job=loop.new_job_id(), name=name, kind=JobKind.TRAIN, user="lin",
            request_id="r1", spec_json="{}", needs=needs, weight=1.0, device_kinds=(), shape=None, copies=1,
        )
    )  # fmt: skip


async def test_the_state_of_a_real_loop() -> None:
    async with real_loop() as (loop, client):
        connect_node(loop)
        submit(loop)
        loop.turn(NOW)
        for _ in range(20):  # the page reads the log in a task of its own
            await asyncio.sleep(0)
        state = (await client.get("/api/state")).json()
        node = (await client.get("/api/nodes/n1")).json()
    assert state["totals"]["nodes_lent"] == 1
    assert state["totals"]["borrowed"] == state["totals"]["idle"] == 2
    assert state["sites"] == [{"id": "s", "connected": True, "ray_version": "2.60", "nodes": ["n1"]}]
    assert state["map"] == {"states": "j", "lent": "2", "used": "0"}
    (waiting,) = state["unplaced"]
    assert (waiting["name"], waiting["message"], waiting["remedy"]) == ("hungry", REASON.message, REASON.remedy)
    kinds = [row["kind"] for row in state["events"]]
    assert {"site_connected", "agent_connected", "lease_opened", "submitted"} <= set(kinds)
    assert {row["cause_id"] for row in state["events"]} >= {"test-1", "test-2"}
    assert node["state"] == "lent"


async def test_an_empty_loop_has_an_empty_state() -> None:
    async with real_loop() as (_, client):
        state = (await client.get("/api/state")).json()
    assert (state["sites"], state["jobs"], state["unplaced"], state["events"]) == ([], {}, [], [])
    assert state["totals"]["harvest"] is None


def test_events_stream_over_http() -> None:
    loop = Afternoon(NOW).build()
    names: list[str] = []
    with served(loop) as page, httpx.stream("GET", f"{page.url}/events", timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        for line in answer.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            if len(names) == 3:
                break
    assert names == ["whole", "delta", "delta"]
