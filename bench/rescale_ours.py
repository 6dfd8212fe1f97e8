"""Fallow's side of `bench.rescale`: the train controller of a site, on real raylets, without a scheduler."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from pathlib import Path
from typing import Any

from bench.rescale_cluster import Cluster
from bench.rescale_steps import Step
from protocol.jobspec import JobSpec
from runtime.site.controller import Assignment, LeaseKey, WorkerSlot
from runtime.site.ray_actors import RayActors, head_node
from runtime.training import progress
from runtime.training.controller import TrainController
from runtime.training.decisions import all_items

LIMIT_S = 180.0

log = logging.getLogger(__name__)


class Said:
    """Implements `runtime.site.controller.Reports`: keeps what counts here."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.lost_s: dict[str, float] = {}  # worker: Unix time at which it was known to be lost
        self.warm_up: dict[str, dict[str, float]] = {}  # worker: seconds of each part
        self.moved: dict[int, int] = {}  # revision: bytes
        self.moving_s: dict[int, float] = {}  # revision: of its stall, while they were on their way
        self.failed = ""
        self.changed = asyncio.Event()
        self._moving_s = 0.0  # of switches whose revision is not reached yet
        self._width_from: list[tuple[int, int]] = []  # (first step, width), newest last

    def reached(
        self, assignment: Assignment, stall_s: float, bytes_moved: int = 0, at_step: int = 0, cause: str = ""
    ) -> None:
        """The survivors of a loss say so under the old revision, of which the bytes are then added up."""
        log.info("revision %d reached: %s, stall %.3f s", assignment.revision, cause, stall_s)
        self.moved[assignment.revision] = self.moved.get(assignment.revision, 0) + bytes_moved
        self.moving_s[assignment.revision] = self.moving_s.get(assignment.revision, 0.0) + self._moving_s
        self._moving_s = 0.0
        self.changed.set()

    def progress(
        self,
        job: str,
        step: int,
        total: int,
        rate: float,
        rate_unit: str,
        width: int,
        loss: float = 0.0,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """A step's end."""
        self.steps.append(Step(step, time.time(), width))
        self.changed.set()

    def worker(self, job: str, slot: WorkerSlot, state: str, detail: str = "") -> None:
        """A worker's state."""
        log.info("%s is %s %s", slot.worker, state, detail)
        if state == "lost":
            self.lost_s[slot.worker] = time.time()
        elif state == "running":
            self.warm_up[slot.worker] = {name: float(s) for name, s in re.findall(r"(\w+) ([\d.]+) s", detail)}
        self.changed.set()

    def ended(self, job: str, outcome: str, message: str = "", output: str = "") -> None:
        """Too early, if it comes while something is measured."""
        self.failed = message or outcome
        self.changed.set()

    def refused(self, assignment: Assignment, code: str, message: str, remedy: str) -> None:
        """Never, here."""
        self.failed = message
        self.changed.set()

    def work_lost(self, job: str, steps: int, seconds: float, cause: str) -> None:
        """Counted from the steps themselves."""

    def endpoint(self, job: str, url: str) -> None:
        """Of served models only."""

    def log(self, job: str, worker: str, lines: list[str]) -> None:
        """For whoever looks for what went wrong."""
        for line in lines:
            log.info("%s %s", worker, line)
            if found := re.search(r"([\d.]+) s of it while [\d.]+ MB of state moved", line):
                self._moving_s += float(found[1])


class Ours:
    """One train job, whose nodes are given to it by `become`."""

    def __init__(self, spec: JobSpec, cluster: Cluster, folder: Path) -> None:
        self.said = Said()
        self._spec, self._cluster, self._folder = spec, cluster, folder
        self._controller: TrainController | None = None
        self._revision = 0

    @property
    def steps(self) -> list[Step]:
        """All steps so far."""
        return self.said.steps

    async def start(self, leases: list[LeaseKey]) -> None:
        """Start the job."""
        progress.EVERY_S = 0.0  # every step counts here
        actors = RayActors(self._cluster.nodes.ray_node, await asyncio.to_thread(head_node))
        self._controller = controller = TrainController("bench", actors, self.said, self._folder)
        telling: set[asyncio.Task[None]] = set()

        def gone(lease: LeaseKey) -> None:
            telling.add(task := asyncio.create_task(controller.node_gone(lease)))
            task.add_done_callback(telling.discard)

        self._cluster.gone = gone
        await self.become(leases, "start")

    async def become(self, leases: list[LeaseKey], cause: str, grace_s: float | None = None) -> int:
        """Give it exactly these nodes; the assignment's revision."""
        assert self._spec.train is not None
        assert self._spec.train.model is not None
        assert self._controller is not None
        self._revision += 1
        model, deadline_s = self._spec.train.model, None if grace_s is None else time.time() + grace_s
        items = all_items(model.layers, model.experts)
        slots = tuple(
            WorkerSlot(
                f"w{lease.epoch}", "trainer", lease, ("cpu0",), items[i :: len(leases)], cohort=str(lease.epoch % 2)
            )
            for i, lease in enumerate(leases)
        )
        await self._controller.assign(
            Assignment("bench", self._revision, slots, cause, deadline_s=deadline_s, spec=self._spec)
        )
        return self._revision

    async def until(self, is_so: Any) -> Any:
        """Wait for `is_so()` to be true (or something); what it is. Raises RuntimeError if the job ends."""
        async with asyncio.timeout(LIMIT_S):
            while not (found := is_so()):
                if self.said.failed:
                    raise RuntimeError(f"Fallow's job ended: {self.said.failed}")
                self.said.changed.clear()
                await self.said.changed.wait()
            return found

    async def stop(self) -> None:
        """End the job and its workers."""
        assert self._controller is not None
        await self._controller.end("measured")
        await self.until(lambda: True)
