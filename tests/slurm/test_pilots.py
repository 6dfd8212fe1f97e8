"""`fallow pilots` on a real Slurm cluster: pilots come with the work and go with it, and the owner never waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.slurm.harvest import SITE, Harvest, until


def leftovers(harvest: Harvest) -> list[str]:
    """Whatever there is of pilots on the nodes: files, and processes that are told by the pilots' folder."""
    files = [str(path) for path in harvest.temp.iterdir()]
    wanted = str(harvest.dir).encode()
    processes = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if wanted in line and b"agents pilots" not in line:
            processes.append(line.decode())
    return files + processes


def test_pilots_come_with_the_work_and_go_with_it(harvest: Harvest) -> None:
    harvest.start()
    time.sleep(2)
    assert not harvest.pilots(), "nothing is submitted while there is no work"
    harvest.scheduler.width = 4
    harvest.await_running(4)
    assert set(harvest.scheduler.connected) == {f"{SITE}.n{number}" for number in range(1, 5)}
    report = next(iter(harvest.scheduler.reports.values()))
    assert report.source == "pilot"
    assert 0 < report.expected_end_s - time.time() < 8 * 60
    assert report.grace_s == 8.0, "the shorter of GraceTime and KillWait"
    harvest.scheduler.width = 0
    ended_s = until(lambda: not harvest.pilots(), harvest.log)
    assert ended_s < 10
    until(lambda: not leftovers(harvest), lambda: str(leftovers(harvest)), 10)


def test_the_owner_gets_its_nodes_and_pilots_return(harvest: Harvest) -> None:
    harvest.scheduler.width = 4
    harvest.start()
    harvest.await_running(4)
    job = harvest.machine.submit("sleep 4", "--partition=owner", "--nodes=2", "--exclusive", "--time=1")
    waited_s = until(lambda: any(j == job and state == "RUNNING" for j, state, _, _ in harvest.machine.jobs()))
    assert waited_s < 11
    assert len(harvest.scheduler.connected) == 2
    harvest.await_running(4)


def test_no_more_nodes_than_allowed_and_no_more_than_there_is_work_for(harvest: Harvest) -> None:
    harvest.settings["bag"]["nodes"] = 3
    harvest.scheduler.width = 4
    harvest.start()
    harvest.await_running(3)
    assert not harvest.pilots("PENDING")
    harvest.scheduler.width = 1
    harvest.await_running(1)


def test_no_secret_is_shown_by_slurm_or_written_to_a_log(harvest: Harvest) -> None:
    harvest.scheduler.width = 1
    harvest.start()
    harvest.await_running(1)
    job = harvest.pilots("RUNNING")[0]
    shown = harvest.machine.run("scontrol", "show", "job", "--details", job).stdout
    shown += harvest.machine.run("scontrol", "write", "batch_script", job, "-").stdout
    shown += harvest.log()
    for name in os.listdir("/proc"):
        if name.isdigit() and b"agents\0pilot\0" in _read(f"/proc/{name}/cmdline"):
            shown += (_read(f"/proc/{name}/cmdline") + _read(f"/proc/{name}/environ")).decode(errors="replace")
    assert "secret" not in shown
    assert "never-to-be-passed-on" not in shown


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_warning_signal_of_slurm_is_a_reclaim_too(harvest: Harvest) -> None:
    """Slurm sends it up to a minute earlier than asked for. Without it a pilot leaves seconds before its end."""
    harvest.settings["warning_s"] = 40.0
    harvest.settings["bag"]["lengths_min"] = [3]
    harvest.scheduler.width = 1
    harvest.start()
    harvest.await_running(1)
    pilot = harvest.pilots("RUNNING")[0]
    shown = harvest.machine.run("scontrol", "--oneliner", "show", "job", pilot).stdout
    ends_s = int(next(word for word in shown.split() if word.startswith("EndTime=")).partition("=")[2])
    until(lambda: pilot not in harvest.pilots("RUNNING"), harvest.log, 200)
    assert time.time() < ends_s - 25
