"""Ordinary users of one machine, each with a `fallow pilots` of their own; none of them is root."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import agents
from bench.slurm_machine import SlurmMachine
from tests.slurm.harvest import Harvest, until

USERS = ("nobody", "daemon")
"""They are there on every machine, and may do nothing."""


ROOT = Path(agents.__file__).parents[1]
LIBRARIES = {"PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}"}


def python_for(user: str) -> str:
    """A Python of this version that the user can run Fallow with; empty without one. Ours may lie in root's home."""
    for found in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            command = [found, "-m", "agents", "pilots", "--help"]
            subprocess.run(command, user=user, extra_groups=[], cwd="/", env=LIBRARIES, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return found
    return ""


@pytest.fixture
def harvests(machine: SlurmMachine, short_path: Path) -> Iterator[tuple[Harvest, Harvest]]:
    python = python_for(USERS[0])
    if not python:
        pytest.skip(f"{USERS[0]} can run no Python 3.{sys.version_info.minor} with Fallow in {ROOT}")
    machine.await_idle(60)
    folders = [short_path / user for user in USERS]
    for folder in folders:
        folder.mkdir(mode=0o700)
    with Harvest(machine, folders[0], USERS[0], "one") as one, Harvest(machine, folders[1], USERS[1], "two") as two:
        for harvest in (one, two):
            harvest.python = harvest.settings["python"] = python
            harvest.environment |= LIBRARIES
            harvest.settings["place"]["environment"] = LIBRARIES
        yield one, two


def owners(machine: SlurmMachine) -> dict[str, str]:
    """User of every job, by the job's name."""
    rows = machine.run("squeue", "--noheader", "--array", "--format=%j|%u").stdout.split()
    return dict(row.split("|") for row in rows)


def test_two_users_harvest_one_machine_and_keep_out_of_each_others_way(
    machine: SlurmMachine, harvests: tuple[Harvest, Harvest]
) -> None:
    one, two = harvests
    for harvest in harvests:
        harvest.settings["bag"]["nodes"] = 2
        harvest.scheduler.width = 2
        harvest.start()
    for harvest in harvests:
        harvest.await_running(2)
    assert owners(machine) == {"fallow-one": "nobody", "fallow-two": "daemon"}
    assert {name.partition(".")[0] for name in one.scheduler.connected} == {"one"}
    assert {name.partition(".")[0] for name in two.scheduler.connected} == {"two"}
    assert one.scheduler.connected.isdisjoint(two.scheduler.connected)
    for harvest in harvests:
        owned = [path.stat().st_uid for path in harvest.temp.iterdir()]
        assert len(owned) == 2
        assert set(owned) == {harvest.folder.stat().st_uid}
    before = two.pilots("RUNNING")
    one.scheduler.width = 0
    until(lambda: not one.pilots(), one.log)
    assert two.pilots("RUNNING") == before, "the other user's work goes on"
    assert one.stop() == 0
    until(lambda: not list(one.temp.iterdir()), lambda: str(os.listdir(one.temp)))


def test_the_owner_comes_before_an_ordinary_users_pilots(
    machine: SlurmMachine, harvests: tuple[Harvest, Harvest]
) -> None:
    one, _ = harvests
    one.scheduler.width = 4
    one.start()
    one.await_running(4)
    owner = machine.submit("sleep 3", "--partition=owner", "--nodes=4", "--exclusive", "--time=1")
    waited_s = until(lambda: any(job == owner and state == "RUNNING" for job, state, _, _ in machine.jobs()), one.log)
    assert waited_s < machine.shape.grace_s + 1
    until(lambda: not one.scheduler.connected, one.log)
    one.await_running(4)
