"""Processes die, jobs go on: nothing acknowledged is lost and nothing that runs is started again (law 4)."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from fallow.client import Client
from fallow.local_cluster import LocalCluster
from fallow.results import Job
from tests.end_to_end.small import train_spec, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def runs_at(width: int, job: Job) -> bool:
    """Runs so wide, and the rescale that made it so is on its record: progress may be told first."""
    settled = bool(job.rescales) and job.rescales[-1].width == width
    return job.state == "running" and job.width == width and job.step > 0 and settled


def test_a_submit_that_was_acknowledged_survives_a_crash(cluster: LocalCluster, tmp_path: Path) -> None:
    submitted = cluster.client.submit(train_spec(tmp_path / "out", width=(50, 50), global_batch=64), "only-once")
    cluster.kill_scheduler()
    cluster.start_scheduler()
    assert cluster.client.job(submitted.job).name == "small"
    again = cluster.client.submit(train_spec(tmp_path / "out", width=(50, 50), global_batch=64), "only-once")
    assert (again.job, again.existed) == (submitted.job, True)


@pytest.mark.parametrize(("part", "dead_s"), [("scheduler", 60.0), ("site", 3.0)])
def test_training_goes_on_while_a_service_is_dead(
    cluster: LocalCluster, tmp_path: Path, part: str, dead_s: float
) -> None:
    job = cluster.client.submit(train_spec(tmp_path / "out", steps=20_000)).job
    before = until(cluster.client, job, lambda j: runs_at(3, j) and j.step > 5)
    getattr(cluster, f"kill_{part}")()
    time.sleep(dead_s)  # training goes on meanwhile; that is what is tested
    getattr(cluster, f"start_{part}")()
    after = until(cluster.client, job, lambda j: runs_at(3, j) and j.step > before.step + 5)
    assert {w.id for w in after.workers} == {w.id for w in before.workers}
    # with more workers than cores one may be slow for a while, and be given less; that has nothing to do with the dead
    assert [r.cause for r in after.rescales if r.cause != "straggler"] == [r.cause for r in before.rescales]
    assert after.steps_lost == 0


def test_a_watcher_sees_through_a_restart(cluster: LocalCluster, tmp_path: Path) -> None:
    job = cluster.client.submit(train_spec(tmp_path / "out", steps=150)).job
    context = cluster.client.context
    sequences: list[int] = []
    last: list[Job] = []

    def watch() -> None:
        with Client(context=context) as watching:
            for event in watching.watch(job):
                sequences.append(event.sequence)
                last[:] = [event.job]

    watcher = threading.Thread(target=watch)
    until(cluster.client, job, lambda j: j.step > 3)
    watcher.start()
    cluster.kill_scheduler()
    cluster.start_scheduler()
    watcher.join(200)
    assert last
    assert last[0].state == "done"
    assert sequences == sorted(set(sequences))


def test_the_owner_wins_while_the_scheduler_is_dead(cluster: LocalCluster, tmp_path: Path) -> None:
    job = cluster.client.submit(train_spec(tmp_path / "out")).job
    until(cluster.client, job, lambda j: runs_at(3, j))
    node = next(n for n in cluster.client.nodes() if n.id == "node-2")
    assert node.epoch is not None
    cluster.kill_scheduler()
    try:
        cluster.reclaim("node-2", grace_s=3.0)
        deadline_s = time.monotonic() + 3.5
        while cluster.lease_processes("node-2", node.epoch) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert cluster.lease_processes("node-2", node.epoch) == []
    finally:
        cluster.start_scheduler()
        cluster.lend("node-2")
    until(cluster.client, job, lambda j: runs_at(3, j) and j.step > 5)
