"""The whole of it: training on the idle nodes of a real Slurm machine, with real raylets inside real pilots."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bench.slurm_machine import MachineShape, SlurmMachine
from fallow.local_cluster import LocalCluster
from tests.end_to_end.small import train_spec
from tests.end_to_end.small import until as until_job
from tests.slurm.harvest import harvesting, settings, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def machine() -> Iterator[SlurmMachine]:
    """Three nodes. KillWait is the notice that a pilot gets, GraceTime does not come into it."""
    with tempfile.TemporaryDirectory(prefix="fwm") as name:
        Path(name).chmod(0o755)
        with SlurmMachine(Path(name), MachineShape(nodes=3, grace_s=20, kill_wait_s=20)) as running:
            yield running


@pytest.fixture(scope="module")
def fallow() -> Iterator[LocalCluster]:
    """Scheduler and site, no agent."""
    cluster = LocalCluster(Path(tempfile.mkdtemp(prefix="fw-")), nodes=0)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        cluster.remove()


@pytest.fixture(scope="module")
def temp() -> Iterator[Path]:
    """The nodes' folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="fwt") as name:
        yield Path(name)


@pytest.fixture
def pilots(machine: SlurmMachine, fallow: LocalCluster, temp: Path) -> Iterator[Path]:
    """`fallow pilots`; its log."""
    with harvesting(machine, fallow, temp) as log:
        yield log


def test_training_on_idle_nodes_gives_way_to_the_owner_and_loses_nothing(
    machine: SlurmMachine, fallow: LocalCluster, pilots: Path, temp: Path, tmp_path: Path
) -> None:
    client = fallow.client
    job = client.submit(train_spec(tmp_path / "out", steps=1_000_000, width=(1, 3))).job
    before = until_job(client, job, lambda j: j.state == "running" and j.width == 3 and j.step > 5, 240)
    owner = machine.submit("sleep 8", "--partition=owner", "--nodes=1", "--exclusive", "--time=1")
    waited_s = until(lambda: any(j == owner and state == "RUNNING" for j, state, _, _ in machine.jobs()), limit_s=60)
    node = next(nodes for j, _, _, nodes in machine.jobs() if j == owner)
    assert waited_s < 21, "the notice and one second"
    carried = list(temp.iterdir())
    assert len(carried) == 2, f"only the pilots of the other two nodes have folders, not {node}: {carried}"
    after = until_job(client, job, lambda j: j.width == 2 and j.step > before.step, 60)
    assert after.steps_lost == 0
    again = until_job(client, job, lambda j: j.width == 3 and j.step > after.step, 240)
    assert again.steps_lost == 0
    reclaims = [r for n in client.nodes() for r in n.reclaims]
    assert reclaims
    assert all(r.free_s <= r.grace_s and r.killed == 0 for r in reclaims), reclaims
    client.cancel(job)
    ended_s = until(lambda: not machine.jobs("--name=fallow-local"), pilots.read_text)
    assert ended_s < 12  # the job's own end included
    until(lambda: not list(temp.iterdir()), lambda: str(list(temp.iterdir())), 15)


def test_a_pilot_that_is_cancelled_outright_loses_no_step_either(
    machine: SlurmMachine, fallow: LocalCluster, pilots: Path, tmp_path: Path
) -> None:
    """An operator's scancel sends SIGTERM to every process of the pilot at once, the raylet's and workers' too."""
    client = fallow.client
    job = client.submit(train_spec(tmp_path / "out", steps=1_000_000, width=(1, 3))).job
    before = until_job(client, job, lambda j: j.state == "running" and j.width == 3 and j.step > 5, 240)
    pilot = machine.jobs("--name=fallow-local", "--state=running")[0][0]
    machine.run("scancel", pilot)
    after = until_job(client, job, lambda j: j.width == 2 and j.step > before.step, 60)
    assert after.steps_lost == 0
    assert after.rescales[-1].cause != "loss", "its workers were moved away, they did not die"
    client.cancel(job)
    until(lambda: not machine.jobs("--name=fallow-local"), pilots.read_text)


def test_a_site_harvests_its_machine_by_itself(
    machine: SlurmMachine, fallow: LocalCluster, temp: Path, tmp_path: Path
) -> None:
    """`fallow site --slurm FILE`: one command is the site and its pilots; both end with it."""
    config, log = tmp_path / "pilots.yaml", tmp_path / "site.log"
    own = settings(fallow, temp, "mini")
    for shared in ("site", "scheduler", "token_file"):
        del own[shared]
    config.write_text(yaml.safe_dump(own))
    folder = tempfile.mkdtemp(prefix="fwm")
    command = [str(Path(sys.executable).with_name("fallow")), "site", "--slurm", str(config), "--name", "mini"]
    link = ["--scheduler", fallow.address, "--token-file", str(fallow.home / "tokens" / "site"), "--dir", folder]
    with log.open("ab") as output:
        site = subprocess.Popen(
            [*command, *link], env={**os.environ, **machine.environment}, stdout=output, stderr=output
        )
    try:
        client = fallow.client
        job = client.submit(train_spec(tmp_path / "model", steps=1_000_000, width=(1, 2))).job
        running = until_job(client, job, lambda j: j.state == "running" and j.step > 0, 200)
        assert all(worker.node.startswith("mini.") for worker in running.workers)
        site.terminate()
        assert site.wait(60) == 0
        until(lambda: not machine.jobs("--name=fallow-mini"), log.read_text)
        client.cancel(job)
    finally:
        print(log.read_text(errors="replace"))
        site.terminate()  # and with it its Ray head
        site.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
