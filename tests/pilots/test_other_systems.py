"""OpenPBS by what its reference guide documents, and plain hosts by real processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest

from agents.batch import Limits, Machine, Order, PilotJob, PilotState, Refused, openpbs
from agents.batch.openpbs import OpenPbs, PbsPlace
from agents.batch.script import PilotScript
from agents.batch.shell import Shell

JOBS = {
    "Jobs": {
        "12.pbs": {
            "Job_Name": "fallow-mini",
            "Job_Owner": "ann@login1",
            "job_state": "R",
            "Resource_List": {"walltime": "00:08:00", "select": "1"},
            "exec_host": "n1/0*16",
        },
        "13.pbs": {
            "Job_Name": "fallow-mini",
            "Job_Owner": "ann@login1",
            "job_state": "Q",
            "Resource_List": {"walltime": "01:30:00"},
        },
        "14.pbs": {
            "Job_Name": "cfd",
            "Job_Owner": "bob@login1",
            "job_state": "Q",
            "estimated": {"start_time": 1790000600},
        },
        "15.pbs": {"Job_Name": "fallow-mini", "Job_Owner": "bob@login1", "job_state": "R", "exec_host": "n2/0*16"},
        "11.pbs": {"Job_Name": "fallow-mini", "Job_Owner": "ann@login1", "job_state": "F"},
    }
}
NODES = {
    "nodes": {
        "n1": {"state": "job-exclusive", "jobs": ["12.pbs/0"]},
        "n2": {"state": "job-busy", "jobs": ["15.pbs/0"]},
        "n3": {"state": "free"},
        "n4": {"state": "offline"},
        "n5": {"state": "down"},
    }
}


def test_what_qstat_and_pbsnodes_show() -> None:
    assert openpbs.machine(JOBS, NODES, "ann", "fallow-mini", 1_790_000_000.0) == Machine(
        nodes=3,
        idle=("n3",),
        leaving=("n4",),
        pilots=(
            PilotJob("12.pbs", PilotState.RUNNING, 480.0, "n1"),
            PilotJob("13.pbs", PilotState.PENDING, 5400.0),
        ),
        waiting=1,
        window_s=600.0,
    )


def test_limits_of_a_queue() -> None:
    queue = {"enabled": "True", "started": "True", "kill_delay": 60, "resources_max": {"walltime": "04:00:00"}}
    assert openpbs.queue_limits({"Queue": {"spare": queue}}) == Limits(60.0, False, 14_400.0, 1.0)
    assert openpbs.queue_limits({"Queue": {"spare": {}}}).notice_s == 10.0
    with pytest.raises(Refused, match="spare is not enabled"):
        openpbs.queue_limits({"Queue": {"spare": {**queue, "enabled": "False"}}})
    with pytest.raises(Refused, match="no queue"):
        openpbs.queue_limits({})


async def test_what_qsub_is_given(tmp_path: Path) -> None:
    """A program that stands in for qsub notes what it was given: only the words are tested here."""
    given = tmp_path / "given"
    program = tmp_path / "qsub"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {given}\ncat >> {given}\necho 16.pbs\n')
    program.chmod(0o755)
    script = PilotScript("fallow-mini", "ann", ("python3", "-m", "agents", "pilot"), tmp_path)
    system = OpenPbs(PbsPlace("spare", "proj", ("-l", "ngpus=1")), script, {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    await system.submit(Order(5400.0, 2, 100))
    words = given.read_text().splitlines()
    assert words.count("walltime=01:30:00") == 2
    assert words[words.index("-p") + 1] == "-100"
    assert words[words.index("-r") + 1] == "n"
    assert "exec python3 -m agents pilot --length-s 5400" in words


async def test_what_qsub_says_is_kept(tmp_path: Path) -> None:
    program = tmp_path / "qsub"
    program.write_text("#!/bin/sh\necho 'qsub: Unknown queue' >&2\nexit 170\n")
    program.chmod(0o755)
    script = PilotScript("fallow-mini", "ann", ("true",), tmp_path)
    with pytest.raises(Refused, match="Unknown queue"):
        await OpenPbs(PbsPlace(), script, {"PATH": str(tmp_path) + ":/bin"}).submit(Order(60.0, 1, 0))


def pilot(tmp_path: Path) -> tuple[str, ...]:
    """A pilot that writes down its host, and ends when its standard input does."""
    code = "import os,sys; open(sys.argv[1]+'/'+os.environ['FALLOW_NODE'],'w').write('here'); sys.stdin.read()"
    return (sys.executable, "-S", "-c", code, str(tmp_path))


async def test_a_pilot_per_host_and_the_rest_waits(tmp_path: Path) -> None:
    system = Shell(("a", "b"), "env HOST={host} {command}", pilot(tmp_path), tmp_path, os.environ)
    await system.submit(Order(120.0, 2, 50))
    await system.submit(Order(480.0, 1, 0))
    seen = await system.look()
    assert [(p.length_s, p.node) for p in seen.in_state(PilotState.RUNNING)] == [(480.0, "a"), (120.0, "b")]
    assert len(seen.in_state(PilotState.PENDING)) == 1
    await _until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    await system.cancel_all()
    await _gone(system)


async def test_a_host_that_cannot_be_used_is_left_alone(tmp_path: Path) -> None:
    system = Shell(("a",), "false {host} {command}", ("true",), tmp_path, os.environ)
    await system.submit(Order(120.0, 3, 0))
    deadline_s = time.monotonic() + 20
    while (seen := await system.look()).nodes and time.monotonic() < deadline_s:  # noqa: ASYNC110 (there is no event)
        await asyncio.sleep(0.05)
    assert (seen.nodes, seen.in_state(PilotState.RUNNING)) == (0, ())


async def _until(true: object) -> None:
    deadline_s = time.monotonic() + 20
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


async def _gone(system: Shell) -> None:
    deadline_s = time.monotonic() + 20
    while (await system.look()).pilots:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


def test_documented_output_is_json() -> None:
    assert openpbs._json(json.dumps(JOBS)) == JOBS
    assert openpbs._json("") == {}
    with pytest.raises(Refused, match="no JSON"):
        openpbs._json("Job id            Name")
