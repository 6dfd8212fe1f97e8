"""The two contestants of `bench.rescale`, behind one seam."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.rescale_cluster import Cluster
from bench.rescale_ours import LIMIT_S, Ours
from bench.rescale_steps import Step
from protocol.jobspec import JobSpec
from runtime.site.controller import LeaseKey

GRACE_S = 10.0
LOOK_S = 5.0
_POLL_S = 0.05


class Contestant(Protocol):
    """A training job that is told of its nodes."""

    @property
    def steps(self) -> list[Step]:
        """All steps so far."""

    async def joined(self, leases: list[LeaseKey]) -> None:
        """These are the nodes now, one more than before."""

    async def announced(self, leases: list[LeaseKey], leaving: LeaseKey) -> None:
        """A node leaves within `GRACE_S`; the others stay."""

    async def killed(self, leases: list[LeaseKey], dead: LeaseKey) -> None:
        """A node was killed just now; the others stay."""

    async def until(self, is_so: Callable[[], Any]) -> Any:
        """Wait for it, looking after each step."""

    def moved(self, width: int) -> int:
        """Bytes of state that moved in the last rescale, which led to `width`."""


@dataclass
class FallowJob:
    """Our side of the seam."""

    ours: Ours
    nodes: Cluster
    detected_s: list[float] = field(default_factory=list)
    warm_up: list[dict[str, float]] = field(default_factory=list)
    grown: list[int] = field(default_factory=list)  # revisions
    _revision: int = 0

    @property
    def moving_s(self) -> list[float]:
        """Of each growth's stall, while state was on its way."""
        return [self.ours.said.moving_s.get(revision, 0.0) for revision in self.grown]

    @property
    def steps(self) -> list[Step]:
        """See `Contestant`."""
        return self.ours.steps

    async def joined(self, leases: list[LeaseKey]) -> None:
        """See `Contestant`."""
        self._revision = await self.ours.become(leases, "grow")
        self.grown.append(self._revision)
        worker = f"w{leases[-1].epoch}"
        warm_up = await self.until(lambda: self.ours.said.warm_up.get(worker))
        started_s, ready_s = self.nodes.joined(leases[-1])
        self.warm_up.append({"raylet": ready_s - started_s, **warm_up})

    async def announced(self, leases: list[LeaseKey], leaving: LeaseKey) -> None:
        """See `Contestant`."""
        self._revision = await self.ours.become(leases, "reclaim", GRACE_S)

    async def killed(self, leases: list[LeaseKey], dead: LeaseKey) -> None:
        """See `Contestant`."""
        killed_s, worker = time.time(), f"w{dead.epoch}"
        lost_s = await self.until(lambda: self.ours.said.lost_s.get(worker))
        self.detected_s.append(max(lost_s - killed_s, 0.0))
        await self.ours.become(leases, "loss")

    async def until(self, is_so: Callable[[], Any]) -> Any:
        """See `Contestant`."""
        return await self.ours.until(is_so)

    def moved(self, width: int) -> int:
        """See `Contestant`. What survivors of a loss moved is told under the revision before."""
        return self.ours.said.moved.get(self._revision, 0)


class RayTrainJob:
    """The peer's side: a driver process of its own, whose rank 0 writes each step down."""

    def __init__(self, spec: JobSpec, nodes: Cluster, folder: Path) -> None:
        self._nodes, self._folder = nodes, folder
        self._log = folder / "peer.log"
        (folder / "spec.json").write_text(spec.model_dump_json())
        assert spec.train is not None
        arguments = ["--head", str(folder), "--folder", str(folder), "--spec", str(folder / "spec.json")]
        arguments += ["--every", str(spec.train.snapshot_every), "--look-s", str(LOOK_S)]
        command = [sys.executable, "-c", "from bench.rescale_peer import main; main()", *arguments]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    @property
    def steps(self) -> list[Step]:
        """See `Contestant`."""
        told = self._folder / "steps.jsonl"
        lines = told.read_text().splitlines() if told.exists() else []
        return [Step(**json.loads(line)) for line in lines]

    async def joined(self, leases: list[LeaseKey]) -> None:
        """Ray Train finds new nodes by itself."""

    async def announced(self, leases: list[LeaseKey], leaving: LeaseKey) -> None:
        """Ray's own way to announce a reclaim."""
        await asyncio.to_thread(drain, self._nodes.head.address, self._nodes.nodes.ray_node(leaving))

    async def killed(self, leases: list[LeaseKey], dead: LeaseKey) -> None:
        """Ray notices it by itself."""

    async def until(self, is_so: Callable[[], Any]) -> Any:
        """See `Contestant`. Raises RuntimeError if the job ended."""
        async with asyncio.timeout(LIMIT_S):
            while not (found := is_so()):
                if self._process.poll() is not None:
                    raise RuntimeError(f"Ray Train ended:\n{self._log.read_text()[-3000:]}")
                await asyncio.sleep(_POLL_S)
            return found

    def moved(self, width: int) -> int:
        """Every worker reads the checkpoint."""
        sizes = [path.stat().st_size for path in (self._folder / "storage").glob("**/state.pt")]
        return max(sizes, default=0) * width

    def stop(self) -> None:
        """End the driver, and with it the job."""
        self._process.kill()
        self._process.wait()


def drain(address: str, node: str) -> None:
    """Tell Ray that a node is to be preempted after `GRACE_S`. Blocking."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    deadline_ms = int((time.time() + GRACE_S) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, why = GcsClient(address=address).drain_node(node, reason, "the owner wants it", deadline_ms)
    if not is_accepted:
        raise RuntimeError(f"Ray refused to drain a node: {why}")
