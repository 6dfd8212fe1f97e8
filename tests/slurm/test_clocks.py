"""Nodes whose clocks are wrong: pilots end in time all the same, and nobody takes a worker for late or lost."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.slurm_machine import MachineShape, SlurmMachine
from fallow.local_cluster import LocalCluster
from tests.end_to_end.small import train_spec
from tests.end_to_end.small import until as until_job
from tests.slurm.harvest import harvesting, until

AHEAD_S = {"n1": 0, "n2": 600, "n3": -600}
"""How much each node's clock is ahead of everybody else's."""

SLOW_START_S = 15.0
"""Between a pilot's start in Slurm's eyes and its agent's, on a busy machine; Slurm kills 20 s after the end."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

_CUSTOMIZE = """
import os, time
ahead_s, true_time = float(os.environ["AHEAD_S"]), time.time
time.time = lambda: true_time() + ahead_s
time.time_ns = lambda: int(time.time() * 1e9)
"""
"""Python runs a module called `sitecustomize` at every start."""

_PROLOG = """#!/bin/sh
case "$SLURMD_NODENAME" in
{cases}
esac
echo "export PYTHONPATH={folder}"
"""


@pytest.fixture
def machine() -> Iterator[SlurmMachine]:
    """Three nodes. Every Python process of a job step, the workers' too, reads its node's clock."""
    with tempfile.TemporaryDirectory(prefix="fwm") as name:
        Path(name).chmod(0o755)
        clocks, prolog = Path(name) / "clocks", Path(name) / "prolog"
        clocks.mkdir()
        (clocks / "sitecustomize.py").write_text(_CUSTOMIZE)
        cases = "\n".join(f'{node}) echo "export AHEAD_S={ahead_s}";;' for node, ahead_s in AHEAD_S.items())
        prolog.write_text(_PROLOG.format(cases=cases, folder=clocks))
        prolog.chmod(0o755)
        lines = (f"TaskProlog={prolog}",)
        with SlurmMachine(Path(name), MachineShape(nodes=3, grace_s=20, kill_wait_s=20, lines=lines)) as running:
            yield running


@pytest.fixture
def fallow(machine: SlurmMachine) -> Iterator[LocalCluster]:
    """Scheduler, site and `fallow pilots` on a host whose clock is right."""
    cluster = LocalCluster(Path(tempfile.mkdtemp(prefix="fw-")), nodes=0)
    try:
        cluster.start()
        with tempfile.TemporaryDirectory(prefix="fwt") as temp, harvesting(machine, cluster, Path(temp)):
            yield cluster
    finally:
        cluster.stop()
        cluster.remove()


def ends_s(machine: SlurmMachine) -> dict[str, float]:
    """When Slurm will end each node's pilot, by the clock of its controller."""
    shown = machine.run("squeue", "--noheader", "--state=running", "--name=fallow-local", "--format=%N %e").stdout
    return {node: float(end) for node, end in (line.split() for line in shown.splitlines())}


def test_training_on_nodes_whose_clocks_are_ten_minutes_off(
    machine: SlurmMachine, fallow: LocalCluster, tmp_path: Path
) -> None:
    client = fallow.client
    job = client.submit(train_spec(tmp_path / "out", steps=1_000_000, width=(1, 3))).job
    before = until_job(client, job, lambda j: j.state == "running" and j.width == 3 and j.step > 5, 240)
    ends = ends_s(machine)
    assert set(ends) == set(AHEAD_S)
    for node in client.nodes():
        assert node.expected_end_s is not None
        left_s = ends[node.id.removeprefix("local.")] - node.expected_end_s
        assert 5.0 - SLOW_START_S <= left_s <= 5.0 + SLOW_START_S, (
            f"{node.id} is to be left {left_s:.1f} s before its end"
        )
    pilot = next(job_id for job_id, _, _, nodes in machine.jobs("--state=running") if nodes == "n2")
    machine.run("scancel", pilot)
    after = until_job(client, job, lambda j: j.width == 2 and j.step > before.step, 60)
    assert after.steps_lost == 0
    assert after.rescales[-1].cause != "loss"
    until(lambda: any(node.reclaims for node in client.nodes()))
    (reclaim,) = (reclaim for node in client.nodes() for reclaim in node.reclaims)
    assert 0 < reclaim.free_s <= reclaim.grace_s
    client.cancel(job)
    until(lambda: not machine.jobs("--name=fallow-local"))


def test_the_clocks_are_really_off(machine: SlurmMachine) -> None:
    """What the test above stands on: a job step tells the time of its node."""
    tell = [sys.executable, "-c", "import time; print(time.time())"]
    shown = {node: machine.run("srun", "--partition=owner", f"--nodelist={node}", *tell).stdout for node in AHEAD_S}
    right_s = float(shown["n1"])
    for node, ahead_s in AHEAD_S.items():
        assert abs(float(shown[node]) - right_s - ahead_s) < 30
