"""One small Slurm cluster for all tests here, and a Fallow with scheduler and site beside it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.slurm_machine import MachineShape, SlurmMachine, why_not
from tests.slurm.harvest import Harvest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets below it, readable by all, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="fws"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def machine() -> Iterator[SlurmMachine]:
    """Four nodes of two cores; owner's jobs preempt pilots after ten seconds; a cancelled job is killed after six."""
    folder = Path(tempfile.mkdtemp(prefix="fwm"))
    folder.chmod(0o755)
    with SlurmMachine(folder, MachineShape(nodes=4, grace_s=10, kill_wait_s=8)) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def harvest(machine: SlurmMachine, short_path: Path) -> Iterator[Harvest]:
    """`fallow pilots` for the machine, with a scheduler of ours that says how much work there is."""
    machine.await_idle(60)
    with Harvest(machine, short_path) as running:
        yield running
