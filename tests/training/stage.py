"""A train job with real worker processes, and what holds of it however it was disturbed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from protocol.jobspec import JobSpec
from runtime.moe.checkpoint import ModelFolder
from runtime.site.controller import Assignment, WorkerSlot
from runtime.training.actor import Status, TrainWorkerActor
from runtime.training.controller import TrainController
from runtime.training.decisions import all_items
from runtime.training.flat import DensePiece
from runtime.training.pulse import listen
from tests.training.local_actors import LocalActors
from tests.training.recorder import Recorder
from tests.training.undisturbed import run_undisturbed_elsewhere, slots


class Stage:
    """A job with warm workers: scripts then depend on steps, not on how fast processes start."""

    slots_of = staticmethod(slots)

    def __init__(self, folder: Path, spec: JobSpec) -> None:
        self.folder, self.spec = folder, spec
        self.actors, self.said = LocalActors(), Recorder()
        self.controller = TrainController("job-1", self.actors, self.said, folder)
        self.revision = 0

    async def warm(self, *workers: str) -> None:
        """Start workers before anyone asks for them, and wait until they are ready."""
        async with asyncio.timeout(120):
            await asyncio.gather(*(self._warm(slot) for slot in self.slots_of(self.spec, list(workers))))

    async def _warm(self, slot: WorkerSlot) -> None:
        arguments = (slot, self.spec.model_dump_json(), str(self.folder))
        handle = await self.actors.start(slot, TrainWorkerActor, *arguments)
        async for event in listen(*(await handle.status.remote()).pulse, patience_s=lambda: 100.0):
            if event["kind"] == "ready":
                return

    async def assign(
        self, workers: list[str], cause: str, shares: list[int] | None = None, **more: object
    ) -> Assignment:
        self.revision += 1
        wanted = self.slots_of(self.spec, workers, shares) if workers else ()
        assignment = Assignment("job-1", self.revision, wanted, cause, spec=self.spec, **more)
        await self.controller.assign(assignment)
        return assignment

    async def become(self, workers: list[str], cause: str, shares: list[int] | None = None) -> dict:
        assignment = await self.assign(workers, cause, shares)
        return await self.said.until("reached", lambda f: f["revision"] == assignment.revision)

    async def at_step(self, step: int) -> None:
        await self.said.until("progress", lambda f: f["step"] >= step)

    async def status(self, worker: str) -> Status:
        """Of a worker that is there."""
        (slot,) = self.slots_of(self.spec, [worker])
        return await (await self.actors.start(slot, TrainWorkerActor)).status.remote()

    async def ordered(self, worker: str) -> None:
        """Until the worker has been ordered to a switch."""
        while (await self.status(worker)).order is None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def losses(self) -> dict[int, float]:
        return {facts["step"]: facts["loss"] for facts in self.said.all("progress")}


def assert_equal_to_undisturbed(stage: Stage, unheard: range = range(0)) -> None:
    """`unheard`: steps that were taken while no controller listened."""
    expected, buffers = run_undisturbed_elsewhere(stage.spec, stage.folder / "data")
    ours = stage.losses()
    assert sorted({*ours, *unheard}) == list(range(1, stage.spec.train.steps + 1))
    for step, loss in ours.items():
        assert loss == expected[step - 1], f"step {step}"
    with ModelFolder(stage.folder / "out") as saved:
        dense = DensePiece(saved.dense_model().requires_grad_(True)).flat.buffer[0]
        assert torch.equal(dense, buffers["dense"][0])
        for key in all_items(saved.config.layers, saved.config.experts):
            weights = torch.cat([w.flatten() for w in saved.expert(key)])
            assert torch.equal(weights, buffers[key][0]), key
