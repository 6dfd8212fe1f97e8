"""Jobs at a site: revisions, a job's trouble that stays its own, and what is left for the next process."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from protocol import site_pb2
from protocol.jobspec import parse
from runtime.site.controller import Assignment, LeaseKey, NodeMissing
from runtime.site.files import Folder, FolderTaken, write_whole
from runtime.site.hosted_job import HostedJob
from runtime.site.job_store import JobStore
from runtime.site.nodes import Nodes, label_of, lease_of
from tests.tasks.recorder import Recorder

SPEC = parse({"kind": "task", "name": "sweep", "task": {"output": "out", "command": ["true"]}})


def assignment(revision: int) -> Assignment:
    return Assignment("job-1", revision, (), "start", spec=SPEC)


class Controller:
    """Notes its calls; fails or waits at those that it is told to."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fails = False
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def assign(self, assignment: Assignment) -> None:
        await self._called(assignment.revision)

    async def node_gone(self, lease: LeaseKey) -> None:
        await self._called(lease)

    async def end(self, cause: str) -> None:
        await self._called(cause)

    async def detach(self) -> None:
        await self._called("detach")

    async def _called(self, what: Any) -> None:
        self.calls.append(what)
        await self.may_go_on.wait()
        if self.fails:
            raise RuntimeError("a fault of this controller")


async def until_idle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_only_newer_revisions_pass_and_calls_wait_for_each_other() -> None:
    controller = Controller()
    hosted = HostedJob("job-1", controller, Recorder())
    controller.may_go_on.clear()
    for revision in (2, 1, 2, 3):
        hosted.assign(assignment(revision))
    hosted.node_gone(LeaseKey("a", 1))
    await until_idle()
    assert controller.calls == [2], "the next call waits for the first"
    controller.may_go_on.set()
    await until_idle()
    assert controller.calls == [2, 3, LeaseKey("a", 1)]
    await hosted.detach()
    assert controller.calls[-1] == "detach"


async def test_a_controller_that_fails_is_told_for_its_job_and_goes_on() -> None:
    controller, reports = Controller(), Recorder()
    hosted = HostedJob("job-1", controller, reports)
    controller.fails = True
    hosted.assign(assignment(1))
    await until_idle()
    assert reports.of("refused")[0].args[1] == "site_error"
    assert "a fault of this controller" in reports.of("refused")[0].args[2]
    controller.fails = False
    hosted.assign(assignment(2))
    await until_idle()
    assert controller.calls == [1, 2]
    await hosted.detach()


async def test_an_end_that_fails_still_ends_the_job() -> None:
    controller, reports = Controller(), Recorder()
    hosted = HostedJob("job-1", controller, reports)
    controller.fails = True
    hosted.end("cancelled")
    await until_idle()
    assert reports.of("ended")[0].args[:2] == ("job-1", "failed")
    hosted.finish()
    controller.fails = False
    await hosted.detach()


def test_the_next_process_finds_jobs_and_endings(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    running = site_pb2.Assignment(job="a", revision=3, spec_json="{}", cause="grow", deadline_s=5.0)
    store.keep(site_pb2.Assignment(job="b", revision=1, spec_json="{}"))
    store.keep(running)
    store.end(site_pb2.JobEnded(job="b", outcome="done"))
    again = JobStore(tmp_path)
    assert again.all() == [running]
    assert again.has_ended("b")
    assert [ended.outcome for ended in again.ended()] == ["done"]


def test_a_spoiled_file_of_jobs_is_told_and_does_not_stop_the_site(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "jobs.json").write_text('{"running": [')
    assert JobStore(tmp_path).all() == []
    assert "jobs.json cannot be read" in caplog.text


def test_a_folder_is_one_process_s_and_keeps_its_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new")
    with pytest.raises(FolderTaken, match="another site process works in"):
        Folder(tmp_path / "new")
    instance = folder.instance
    folder.close()
    again = Folder(tmp_path / "new")
    assert again.instance == instance
    again.close()


def test_a_secret_is_written_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "head.json"
    write_whole(path, "old", 0o600)
    write_whole(path, "new", 0o600)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["head.json"]


async def test_nodes_are_told_once_and_a_forgotten_lease_stays_forgotten() -> None:
    labels: dict[str, str] = {}
    told: list[str] = []
    nodes = Nodes(
        lambda: dict(labels), lambda lease, _: told.append(f"+{lease}"), lambda lease: told.append(f"-{lease}")
    )
    labels.update({"a_1": "ray-a", "b.c_12": "ray-b", "not-a-lease": "ray-x"})
    await nodes.refresh()
    await nodes.refresh()
    assert told == ["+a/1", "+b.c/12"]
    assert nodes.ray_node(LeaseKey("b.c", 12)) == "ray-b"
    nodes.forget(LeaseKey("a", 1))
    await nodes.refresh()
    assert told[2:] == ["-a/1"], "Ray may take long to notice"
    with pytest.raises(NodeMissing, match="fallow-lease=a_1"):
        nodes.ray_node(LeaseKey("a", 1))
    del labels["b.c_12"]
    await nodes.refresh()
    assert told[3:] == ["-b.c/12"]


def test_labels_name_leases() -> None:
    for lease in (LeaseKey("node-1.example", 3), LeaseKey("with_underscore", 12)):
        assert lease_of(label_of(lease)) == lease
    assert label_of(LeaseKey("odd name/1", 2)) == "odd-name-1_2"
    assert lease_of("_3") is None
    assert lease_of("node") is None
