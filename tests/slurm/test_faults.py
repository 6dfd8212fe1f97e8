"""What can go wrong between pilots and a Slurm machine; each on a real cluster."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from agents.pilots import errand
from bench.slurm_machine import MachineShape, SlurmMachine
from tests.slurm.harvest import SITE, Harvest, until


def test_the_controller_is_gone_for_a_while(short_path: Path) -> None:
    """Shortly, with short pauses of the process."""
    with SlurmMachine(short_path / "m", MachineShape(nodes=2)) as machine, Harvest(machine, short_path) as harvest:
        harvest.scheduler.width = 2
        harvest.start()
        harvest.await_running(2)
        ids = harvest.pilots("RUNNING")
        machine.stop_controller()
        until(lambda: "nable to contact" in harvest.status()["problem"], harvest.log)
        assert len(harvest.scheduler.connected) == 2, "agents need no controller"
        machine.start_controller()
        until(lambda: not harvest.status()["problem"].startswith(("sinfo", "squeue", "scontrol")), harvest.log)
        harvest.await_running(2)
        assert harvest.pilots("RUNNING") == ids, "the same pilots as before, and no others"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_controller_is_gone_for_two_minutes(short_path: Path) -> None:
    """With the pauses that a real machine gets."""
    with SlurmMachine(short_path / "m", MachineShape(nodes=2)) as machine, Harvest(machine, short_path) as harvest:
        for pause in ("quick_s", "quiet_s", "patience_s"):
            del harvest.settings[pause]
        harvest.settings["bag"]["lengths_min"] = [30]
        harvest.scheduler.width = 2
        harvest.start()
        harvest.await_running(2)
        ids = harvest.pilots("RUNNING")
        machine.stop_controller()
        gone_s = time.monotonic()
        until(lambda: time.monotonic() - gone_s > 120, harvest.log, 130)
        assert len(harvest.scheduler.connected) == 2, "agents need no controller"
        machine.start_controller()
        until(lambda: not harvest.status()["problem"], harvest.log, 130)
        harvest.await_running(2)
        assert harvest.pilots("RUNNING") == ids, "the same pilots as before, and no others"


def test_the_work_ends_while_the_controller_is_gone(short_path: Path) -> None:
    with SlurmMachine(short_path / "m", MachineShape(nodes=2)) as machine, Harvest(machine, short_path) as harvest:
        harvest.scheduler.width = 2
        harvest.start()
        harvest.await_running(2)
        machine.stop_controller()
        harvest.scheduler.width = 0
        until(lambda: not harvest.scheduler.connected, harvest.log)
        machine.start_controller()
        until(lambda: not harvest.pilots(), harvest.log)


def test_an_operator_drains_a_node_under_a_pilot(harvest: Harvest) -> None:
    harvest.scheduler.width = 4
    harvest.start()
    harvest.await_running(4)
    harvest.machine.run("scontrol", "update", "nodename=n2", "state=drain", "reason=maintenance")
    try:
        until(lambda: harvest.machine.states()["n2"] == "drained", harvest.log)
        harvest.await_running(3)
        assert f"{SITE}.n2" not in harvest.scheduler.connected
    finally:
        harvest.machine.run("scontrol", "update", "nodename=n2", "state=resume")
    harvest.await_running(4)


def test_what_sbatch_says_is_shown(harvest: Harvest) -> None:
    harvest.settings["place"]["constraint"] = "quantum"
    harvest.scheduler.width = 1
    harvest.start()
    until(lambda: "Invalid feature specification" in harvest.status().get("problem", ""), harvest.log)
    assert "Invalid feature specification" in harvest.log()
    assert not harvest.pilots()


def test_a_pilot_that_starts_after_its_work_has_ended(harvest: Harvest) -> None:
    """The process that would have withdrawn it is dead; the shared folder still says that there is no work."""
    machine = harvest.machine
    owner = machine.submit("sleep 600", "--partition=owner", "--nodes=4", "--exclusive", "--time=20")
    until(lambda: set(machine.states().values()) == {"allocated"})
    harvest.scheduler.width = 4
    harvest.start()
    until(lambda: harvest.pilots("PENDING"), harvest.log)
    harvest.stop(signal.SIGKILL)
    errand.say_wanted(harvest.dir, False)
    machine.run("scancel", owner)
    until(lambda: not harvest.pilots(), harvest.log)
    assert not harvest.scheduler.reports
    assert "there is no work any more" in harvest.log()


def test_pilots_that_cannot_run_on_the_nodes_are_not_submitted_again_and_again(harvest: Harvest) -> None:
    """The nodes lack the Python that pilots are to use: each pilot fails within a second."""
    harvest.settings["python"] = "/nowhere/python"
    harvest.settings["bag"] = {"lengths_min": [2], "each": 1, "nodes": 1}
    harvest.settings["patience_s"] = 8.0
    harvest.scheduler.width = 4
    harvest.start()
    until(lambda: "ended before their agents reached" in harvest.status().get("problem", ""), harvest.log)
    assert "/nowhere/python" in harvest.log(), "what to mend"
    before = harvest.log().count("submitting")
    began_s = time.monotonic()
    until(lambda: harvest.log().count("submitting") >= before + 3, harvest.log)
    assert time.monotonic() - began_s > 8.0, "the pauses grow to that of a silent machine"


def test_a_new_process_takes_up_the_pilots_of_a_killed_one(harvest: Harvest) -> None:
    harvest.scheduler.width = 2
    harvest.start()
    harvest.await_running(2)
    ids = harvest.pilots("RUNNING")
    harvest.stop(signal.SIGKILL)
    (harvest.dir / "status.json").unlink()
    harvest.start()
    until(lambda: harvest.status().get("running") == 2, harvest.log)
    harvest.await_running(2)
    assert harvest.pilots("RUNNING") == ids
    assert harvest.stop() == 0
    until(lambda: not harvest.pilots(), harvest.log)


def test_the_partition_vanishes_and_comes_back(short_path: Path) -> None:
    with SlurmMachine(short_path / "m", MachineShape(nodes=2)) as machine, Harvest(machine, short_path) as harvest:
        harvest.scheduler.width = 2
        harvest.start()
        harvest.await_running(2)
        machine.write_conf(without=["PartitionName=spare"])
        machine.run("scontrol", "reconfigure")
        until(lambda: "spare" in harvest.status()["problem"], harvest.log)
        machine.write_conf()
        machine.run("scontrol", "reconfigure")
        harvest.await_running(2)


def test_five_hundred_waiting_pilots_are_withdrawn_at_once(harvest: Harvest) -> None:
    machine = harvest.machine
    machine.submit("sleep 600", "--partition=owner", "--nodes=4", "--exclusive", "--time=20")
    until(lambda: set(machine.states().values()) == {"allocated"})
    harvest.settings["bag"] = {"lengths_min": list(range(2, 127)), "each": 4, "pending": 500}
    harvest.scheduler.width = 4
    harvest.start()
    until(lambda: len(harvest.pilots("PENDING")) == 500, harvest.log, 200)
    harvest.scheduler.width = 0
    assert until(lambda: not harvest.pilots(), harvest.log) < 10
