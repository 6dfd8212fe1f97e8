from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fallow.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[LocalCluster]:
    """One cluster of three nodes for all tests of this folder that leave it whole."""
    home = Path(tempfile.mkdtemp(prefix="fw-"))
    cluster = LocalCluster(home, 3)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        assert cluster.processes() == []
        cluster.remove()


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster with all nodes ready; jobs that a test leaves behind are cancelled."""
    shared_cluster.await_ready_nodes(len(shared_cluster.nodes))
    yield shared_cluster
    for job in shared_cluster.client.jobs():
        shared_cluster.client.cancel(job.id)
        shared_cluster.client.wait(job.id, 60)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of its output."""
        return json.loads(self.out.splitlines()[-1])


Fallow = Callable[..., Outcome]


def run_fallow(home: Path, *arguments: str, timeout_s: float = 240, **variables: str) -> Outcome:
    """Run the command line as a user would."""
    kept = {k: v for k, v in os.environ.items() if k not in ("FALLOW_ADDRESS", "FALLOW_TOKEN", "FALLOW_TLS_CA")}
    done = subprocess.run(
        [sys.executable, "-m", "fallow", *arguments],
        env={**kept, "FALLOW_HOME": str(home), **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def fallow(cluster: LocalCluster) -> Fallow:
    """The command line, with the cluster's context."""
    return lambda *arguments, **variables: run_fallow(cluster.home, *arguments, **variables)
