"""A task job under its controller, with real commands and actors that live on this event loop."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from protocol.jobspec import JobSpec, parse
from runtime.site.controller import Assignment, LeaseKey, WorkerSlot
from runtime.tasks.controller import TaskController
from tests.tasks.local_actors import LocalActors
from tests.tasks.processes import until_dead
from tests.tasks.recorder import Recorder


def spec(output: Path, width: int = 2, **task: Any) -> JobSpec:
    return parse(
        {
            "kind": "task",
            "name": "sweep",
            "width": {"min": 1, "max": width},
            "task": {"output": str(output), **task},
        }
    )


def slot(worker: str, node: str) -> WorkerSlot:
    return WorkerSlot(worker, "runner", LeaseKey(node, 1), ("cpu:0",))


def assignment(job_spec: JobSpec, revision: int, *slots: WorkerSlot, **more: Any) -> Assignment:
    return Assignment("job-1", revision, slots, more.pop("cause", "start"), spec=job_spec, **more)


class Job:
    """One controller with what it needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.actors = LocalActors()
        self.reports = Recorder()
        self.controller = TaskController("job-1", self.actors, self.reports, folder)

    async def ended(self) -> tuple[str, str]:
        said = await self.reports.until(lambda: self.reports.of("ended"))
        return said[0].args[1], said[0].args[2]


@pytest.fixture
async def job(tmp_path: Path) -> Any:
    made = Job(tmp_path / "site")
    yield made
    await made.controller.end("the test is over")


def results(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


async def until_file(path: Path, limit_s: float = 30.0) -> str:
    async with asyncio.timeout(limit_s):
        while not (text := content(path)):  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.02)
    return text


def content(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def test_every_item_ends_with_exactly_one_line_and_its_own_output(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    array = [{"n": n} for n in range(6)]
    job_spec = spec(output, command=["sh", "-c", "echo item {n}; echo worry >&2"], array=array)
    await job.controller.assign(assignment(job_spec, 1, slot("w0", "a"), slot("w1", "b")))
    assert await job.ended() == ("done", "6 items done")
    lines = results(output)
    assert sorted(line["item"] for line in lines) == list(range(6))
    assert {line["state"] for line in lines} == {"done"}
    assert [line["parameters"] for line in sorted(lines, key=lambda line: line["item"])] == array
    assert (output / "logs" / "3.out").read_text() == "item 3\n"
    assert (output / "logs" / "3.err").read_text() == "worry\n"
    assert job.reports.states("w0") == ["starting", "running"]  # it ends with its job, and is not to be replaced
    assert job.reports.of("reached")[0].args[0].revision == 1
    last = job.reports.of("progress")[-1]
    assert last.args[:3] == ("job-1", 6, 6)


async def test_an_item_that_fails_is_tried_again_and_then_reported_with_the_end_of_its_output(
    job: Job, tmp_path: Path
) -> None:
    output, tries = tmp_path / "out", tmp_path / "tries"
    command = ["sh", "-c", f"echo x >> {tries}; echo no such thing >&2; exit 3"]
    await job.controller.assign(assignment(spec(output, command=command, retries=2), 1, slot("w0", "a")))
    outcome, message = await job.ended()
    assert outcome == "failed"
    assert "1 of 1 items failed" in message
    assert "exit status 3: no such thing" in message
    assert tries.read_text().count("x") == 3
    assert [(line["state"], line["tries"], line["exit_status"]) for line in results(output)] == [("failed", 3, 3)]


async def test_a_lost_runner_costs_no_try_and_its_item_runs_elsewhere(job: Job, tmp_path: Path) -> None:
    output, began = tmp_path / "out", tmp_path / "began"
    command = ["sh", "-c", f"if [ -e {began} ]; then exit 0; fi; echo $$ > {began}; sleep 600"]
    job_spec = spec(output, command=command, retries=0)
    await job.controller.assign(assignment(job_spec, 1, slot("w0", "a"), slot("w1", "b")))
    pid = int(await until_file(began))
    worker = next(name for name, handle in job.actors.handles.items() if handle.actor._current)
    node = {"w0": "a", "w1": "b"}[worker]
    await job.controller.node_gone(LeaseKey(node, 1))
    assert await job.ended() == ("done", "1 items done")
    assert [line["tries"] for line in results(output)] == [1]
    assert job.reports.states(worker)[-1] == "lost"
    assert job.reports.of("work_lost")[0].args[2] > 0
    assert job.reports.of("reached")[-1].named["cause"] == "loss"
    await until_dead(pid)


async def test_a_node_that_is_gone_before_its_runner_began_to_start_holds_nothing_up(job: Job, tmp_path: Path) -> None:
    job_spec = spec(tmp_path / "out", command=["true"])
    await job.controller.assign(assignment(job_spec, 1, slot("w0", "a")))
    await job.controller.node_gone(LeaseKey("a", 1))  # as when a site comes back after its whole cluster went
    await job.reports.until(lambda: job.reports.states("w0") == ["lost"])
    await job.controller.assign(assignment(job_spec, 2, slot("w1", "b")))
    assert await job.ended() == ("done", "1 items done")
    assert [said.args[0].revision for said in job.reports.of("reached")] == [2]


async def test_a_leaver_ends_its_item_if_there_is_time(job: Job, tmp_path: Path) -> None:
    output, began, may_end = tmp_path / "out", tmp_path / "began", tmp_path / "may_end"
    command = ["sh", "-c", f"echo $$ > {began}; while [ ! -e {may_end} ]; do sleep 0.05; done"]
    job_spec = spec(output, command=command, retries=0)
    await job.controller.assign(assignment(job_spec, 1, slot("w0", "a")))
    await until_file(began)
    parked = assignment(job_spec, 2, cause="reclaim", deadline_s=time.time() + 60)
    await job.controller.assign(parked)
    may_end.touch()
    assert await job.ended() == ("done", "1 items done")
    assert job.reports.of("work_lost") == []


async def test_a_leaver_is_gone_before_the_deadline_and_its_item_waits(job: Job, tmp_path: Path) -> None:
    output, began = tmp_path / "out", tmp_path / "began"
    command = ["sh", "-c", f"if [ -e {began} ]; then exit 0; fi; echo $$ > {began}; sleep 600"]
    job_spec = spec(output, command=command, retries=0)
    await job.controller.assign(assignment(job_spec, 1, slot("w0", "a")))
    pid = int(await until_file(began))
    deadline_s = time.time() + 2
    await job.controller.assign(assignment(job_spec, 2, cause="reclaim", deadline_s=deadline_s))
    await job.reports.until(lambda: job.reports.states("w0")[-1] == "left")
    assert time.time() < deadline_s
    await until_dead(pid)
    await job.reports.until(lambda: [said for said in job.reports.of("reached") if said.args[0].revision == 2])
    await job.controller.assign(assignment(job_spec, 3, slot("w1", "b"), cause="grow"))
    assert await job.ended() == ("done", "1 items done")
    assert [line["worker"] for line in results(output)] == ["w1"]


async def test_time_outs_and_what_cannot_start_are_failures_of_the_item(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    array = [{"command": "sleep"}, {"command": "no-such-program"}, {"other": 1}]
    job_spec = spec(output, command=["{command}", "600"], array=array, retries=0, timeout_s=0.3)
    await job.controller.assign(assignment(job_spec, 1, slot("w0", "a")))
    outcome, _ = await job.ended()
    errors = {line["item"]: line["error"] for line in results(output)}
    assert outcome == "failed"
    assert "longer than timeout_s (0.3 s)" in errors[0]
    assert "no-such-program cannot be started" in errors[1]
    assert "names {command}, which this item does not have" in errors[2]


async def test_a_function_gives_its_value_and_its_traceback(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    array = [{"a": 1, "b": 2.5}, {"a": 1, "b": 0}]
    job_spec = spec(output, function="operator:truediv", array=array, retries=0)
    await job.controller.assign(assignment(job_spec, 1, slot("w0", "a")))
    outcome, message = await job.ended()
    assert outcome == "failed"
    assert "TypeError" in message  # operator.truediv takes no names: the user sees Python's own words
    pickled = _pickled(lambda a, b: {"quotient": a / b})
    again = Job(tmp_path / "again")
    job_spec = spec(tmp_path / "out2", pickled=pickled, array=array, retries=0)
    await again.controller.assign(assignment(job_spec, 1, slot("w0", "a")))
    outcome, message = await again.ended()
    by_item = {line["item"]: line for line in results(tmp_path / "out2")}
    assert by_item[0]["value"] == {"quotient": 0.4}
    assert "ZeroDivisionError" in by_item[1]["error"]


def _pickled(function: Any) -> str:
    import base64

    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return base64.b64encode(cloudpickle.dumps(function)).decode()


async def test_a_second_site_process_goes_on_where_the_first_one_was(job: Job, tmp_path: Path) -> None:
    output, runs, may_end = tmp_path / "out", tmp_path / "runs", tmp_path / "may_end"
    script = f"echo {{n}} >> {runs}; if [ {{n}} = 1 ]; then while [ ! -e {may_end} ]; do sleep 0.05; done; fi"
    job_spec = spec(output, command=["sh", "-c", script], array=[{"n": n} for n in range(3)])
    first = assignment(job_spec, 1, slot("w0", "a"))
    await job.controller.assign(first)
    async with asyncio.timeout(30):
        while content(runs).split() != ["0", "1"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await job.controller.detach()
    reports = Recorder()
    second = TaskController("job-1", job.actors, reports, job.folder)
    await second.assign(first)
    may_end.touch()
    await reports.until(lambda: reports.of("ended"))
    assert reports.of("ended")[0].args[1] == "done"
    assert runs.read_text().split() == ["0", "1", "2"], "no item ran twice"
    assert sorted(line["item"] for line in results(output)) == [0, 1, 2]


async def test_cancel_ends_what_runs(job: Job, tmp_path: Path) -> None:
    began = tmp_path / "began"
    job_spec = spec(tmp_path / "out", command=["sh", "-c", f"(sleep 600 & echo $! > {began}; wait)"])
    await job.controller.assign(assignment(job_spec, 1, slot("w0", "a")))
    pid = int(await until_file(began))
    await job.controller.end("cancelled by ada")
    assert await job.ended() == ("cancelled", "cancelled by ada")
    await until_dead(pid)


async def test_an_output_folder_takes_one_job_only(job: Job, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / ".fallow-job").write_text("job-0")
    await job.controller.assign(assignment(spec(output, command=["true"]), 1, slot("w0", "a")))
    outcome, message = await job.ended()
    assert outcome == "failed"
    assert "holds the results of job job-0" in message


async def test_an_output_that_cannot_be_written_refuses_the_assignment(job: Job, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    await job.controller.assign(assignment(spec(blocked, command=["true"]), 1, slot("w0", "a")))
    refused = await job.reports.until(lambda: job.reports.of("refused"))
    assert refused[0].args[1] == "output_unusable"
    assert str(blocked) in refused[0].args[2]
