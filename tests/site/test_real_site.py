"""A real site: its own Ray head, real raylets, real kills. One cluster serves the whole module."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from protocol import common_pb2, site_pb2
from runtime.site.controller import LeaseKey
from runtime.site.processes import birth
from tests.site.real_site import Raylet, RealSite, start_raylet, task_assignment
from tests.site.stand_in import StandIn

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class World:
    """The module's scheduler stand-in, site and two lasting nodes."""

    scheduler: StandIn
    site: RealSite
    hello: site_pb2.SiteHello
    stay: LeaseKey
    also: LeaseKey
    raylets: list[Raylet]

    async def lend(self, node: str, epoch: int = 1) -> Raylet:
        raylet = start_raylet(self.hello, LeaseKey(node, epoch))
        self.raylets.append(raylet)
        await self.until_ready(raylet.lease)
        return raylet

    async def until_ready(self, lease: LeaseKey) -> None:
        await self.scheduler.until(lambda: _names(self.scheduler.bodies("node_ready"), lease), 120)

    async def ended(self, job: str) -> site_pb2.JobEnded:
        def found() -> list[site_pb2.JobEnded]:
            return [ended for ended in self.scheduler.bodies("ended") if ended.job == job]

        return (await self.scheduler.until(found, 120))[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    scheduler = StandIn()
    await scheduler.start()
    site = RealSite(tmp_path_factory.mktemp("site"), scheduler)
    hello = await site.ready()
    made = World(scheduler, site, hello, LeaseKey("stay", 1), LeaseKey("also", 7), [])
    try:
        made.raylets += [start_raylet(hello, made.stay), start_raylet(hello, made.also)]
        await made.until_ready(made.stay)
        await made.until_ready(made.also)
        yield made
    finally:
        for raylet in made.raylets:
            await raylet.kill()
        assert await site.stop() == 0, site.log.read_text()
        await scheduler.stop()


def _names(messages: list[Any], lease: LeaseKey) -> bool:
    return any(m.lease.node == lease.node and m.lease.epoch == lease.epoch for m in messages)


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


async def _until(holds: Callable[[], Any], limit_s: float = 60.0) -> Any:
    async with asyncio.timeout(limit_s):
        while not (found := holds()):  # noqa: ASYNC110  other processes change files
            await asyncio.sleep(0.02)
    return found


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _is_alive(pid: str) -> bool:
    return birth(int(pid)) is not None


async def test_workers_run_on_exactly_the_nodes_they_were_given(world: World, tmp_path: Path) -> None:
    output = tmp_path / "out"
    slots = {"exact-0": world.stay, "exact-1": world.also}
    script = f"echo $FALLOW_WORKER >> {tmp_path}/here; while [ $(wc -l < {tmp_path}/here) -lt 2 ]; do sleep 0.05; done"
    command = ["sh", "-c", f"{script}; echo $FALLOW_LEASE $FALLOW_WORKER; env | grep RAY_AUTH_TOKEN; true"]
    world.scheduler.say(task_assignment("exact", 1, output, slots, command=command, array=[{"n": 0}, {"n": 1}]))
    ended = await world.ended("exact")
    assert (ended.outcome, ended.output) == ("done", str(output))
    wrote = {(output / "logs" / f"{item}.out").read_text() for item in (0, 1)}
    assert wrote == {"stay/1 exact-0\n", "also/7 exact-1\n"}, "one item on each node, and no secret of the cluster"
    states = [c.state for c in world.scheduler.bodies("worker") if c.worker == "exact-0"]
    assert states == ["starting", "running"], "it ends with its job, and is not said to have left it"


async def test_a_worker_sees_the_accelerator_that_it_was_given(world: World, tmp_path: Path) -> None:
    command = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    slots = {"sees-0": world.stay}
    world.scheduler.say(task_assignment("sees", 1, tmp_path / "out", slots, device="nvidia:3", command=command))
    assert (await world.ended("sees")).outcome == "done"
    assert (tmp_path / "out" / "logs" / "0.out").read_text() == "3\n"


async def test_a_node_lost_without_a_word_is_told_and_its_item_runs_elsewhere(world: World, tmp_path: Path) -> None:
    output, began = tmp_path / "out", tmp_path / "began"
    raylet = await world.lend("short")
    script = f"if [ $FALLOW_LEASE = short/1 ]; then echo $$ > {began}; sleep 600; fi; echo done on $FALLOW_LEASE"
    slots = {"loss-0": raylet.lease, "loss-1": world.stay}
    array = [{"n": n} for n in range(4)]
    command = ["sh", "-c", f"sleep 0.2; {script}"]
    world.scheduler.say(task_assignment("loss", 1, output, slots, command=command, array=array, retries=0))
    pid = await _until(lambda: _text(began))
    await raylet.kill()
    ended = await world.ended("loss")
    assert ended.outcome == "done", ended.message
    lines = _lines(output)
    assert sorted(line["item"] for line in lines) == [0, 1, 2, 3]
    assert {(line["node"], line["tries"]) for line in lines} == {("stay", 1)}
    await _until(lambda: not _is_alive(pid))
    await world.scheduler.until(lambda: _names(world.scheduler.bodies("node_gone"), raylet.lease))
    assert [c.state for c in world.scheduler.bodies("worker") if c.worker == "loss-0"][-1] == "lost"
    assert [lost.steps for lost in world.scheduler.bodies("work_lost") if lost.job == "loss"] == [0]


async def test_a_killed_site_disturbs_no_worker_and_the_next_one_finds_them(world: World, tmp_path: Path) -> None:
    output, began, may_end = tmp_path / "out", tmp_path / "began", tmp_path / "may_end"
    script = f"echo $$ >> {began}; while [ ! -e {may_end} ]; do sleep 0.05; done; echo $FALLOW_LEASE"
    slots = {"again-0": world.stay}
    world.scheduler.say(task_assignment("again", 1, output, slots, command=["sh", "-c", script]))
    pid = await _until(lambda: _text(began))
    head = world.site.head()
    heard = len(world.scheduler.heard)
    await world.site.kill()
    assert _is_alive(pid)
    hello = await world.site.ready()
    assert (hello.instance, hello.ray_token) == (world.hello.instance, world.hello.ray_token)
    assert world.site.head()["pid"] == head["pid"]
    running = [m.worker for m in world.scheduler.heard[heard:] if m.WhichOneof("body") == "worker"]
    may_end.touch()
    ended = await world.ended("again")
    assert ended.outcome == "done", ended.message
    assert began.read_text().split() == [pid], f"it ran once ({running})"
    assert [line["item"] for line in _lines(output)] == [0]
    ready = [m.node_ready for m in world.scheduler.heard[heard:] if m.WhichOneof("body") == "node_ready"]
    assert _names(ready, world.stay)
    assert _names(ready, world.also)


async def test_a_reclaim_moves_the_work_and_costs_no_try(world: World, tmp_path: Path) -> None:
    output, began = tmp_path / "out", tmp_path / "began"
    script = f"if [ $FALLOW_LEASE = also/7 ]; then echo $$ > {began}; sleep 600; fi"
    command = ["sh", "-c", script]
    world.scheduler.say(task_assignment("moved", 1, output, {"moved-0": world.also}, command=command, retries=0))
    pid = await _until(lambda: _text(began))
    move = task_assignment("moved", 2, output, {"moved-1": world.stay}, "reclaim", command=command, retries=0)
    move.assign.deadline_s = time.time() + 1.0
    world.scheduler.say(move)
    ended = await world.ended("moved")
    assert ended.outcome == "done", ended.message
    assert [(line["node"], line["tries"]) for line in _lines(output)] == [("stay", 1)]
    assert not _is_alive(pid)
    assert [c.state for c in world.scheduler.bodies("worker") if c.worker == "moved-0"] == [
        "starting",
        "running",
        "left",
    ]


async def test_an_older_revision_and_a_forgotten_lease_have_no_effect(world: World, tmp_path: Path) -> None:
    output = tmp_path / "out"
    gone = LeaseKey("never", 3)
    slots = {"old-0": world.stay}
    command = ["sh", "-c", f"while [ ! -e {tmp_path}/may_end ]; do sleep 0.05; done"]
    world.scheduler.say(task_assignment("old", 5, output, slots, command=command))
    await world.scheduler.until(lambda: [r for r in world.scheduler.bodies("reached") if r.job == "old"])
    world.scheduler.say(task_assignment("old", 4, output, {}, "reclaim", command=command))
    reference = common_pb2.LeaseRef(node=gone.node, epoch=gone.epoch)
    world.scheduler.say(site_pb2.SiteCommand(forget=site_pb2.ForgetNode(lease=reference)))
    (tmp_path / "may_end").touch()
    assert (await world.ended("old")).outcome == "done"
    assert {r.revision for r in world.scheduler.bodies("reached") if r.job == "old"} == {5}


async def test_the_end_of_a_job_ends_its_commands(world: World, tmp_path: Path) -> None:
    began = tmp_path / "began"
    command = ["sh", "-c", f"(sleep 600 & echo $! > {began}; wait)"]
    world.scheduler.say(task_assignment("cancel", 1, tmp_path / "out", {"cancel-0": world.stay}, command=command))
    pid = await _until(lambda: _text(began))
    world.scheduler.say(site_pb2.SiteCommand(end=site_pb2.EndJob(job="cancel", cause="cancelled by ada")))
    ended = await world.ended("cancel")
    assert (ended.outcome, ended.message) == ("cancelled", "cancelled by ada")
    await _until(lambda: not _is_alive(pid))


async def test_a_worker_on_a_lease_without_raylet_is_lost_and_the_rest_goes_on(world: World, tmp_path: Path) -> None:
    slots = {"half-0": LeaseKey("nowhere", 9), "half-1": world.stay}
    world.scheduler.say(task_assignment("half", 1, tmp_path / "out", slots, command=["true"], array=[{}, {}]))
    assert (await world.ended("half")).outcome == "done"
    assert [c.state for c in world.scheduler.bodies("worker") if c.worker == "half-0"] == ["starting", "lost"]


async def test_the_scheduler_gone_for_a_while_disturbs_nothing(world: World, tmp_path: Path) -> None:
    output, began = tmp_path / "out", tmp_path / "began"
    command = ["sh", "-c", f"echo {{n}} >> {began}; sleep 0.1"]
    array = [{"n": n} for n in range(5)]
    world.scheduler.say(task_assignment("alone", 1, output, {"alone-0": world.stay}, command=command, array=array))
    await _until(lambda: _text(began))
    await world.scheduler.stop()
    await _until(lambda: len(_text(output / "results.jsonl").splitlines()) == 5)
    await world.scheduler.start()
    ended = await world.ended("alone")
    assert (ended.outcome, ended.message) == ("done", "5 items done")
    assert began.read_text().split() == ["0", "1", "2", "3", "4"]
