"""A controller's line to one worker: starts (or finds) the actor, listens to its pulse, and notices its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.site.controller import Actors, WorkerSlot
from runtime.training import pulse
from runtime.training.actor import Status, TrainWorkerActor
from runtime.training.decisions import LinkPhase
from runtime.training.hangs import Ear
from runtime.training.pulse import Event, listen
from runtime.training.warm_up import WarmUp

START_S = 90.0
"""Longest wait for an actor to start, its imports apart."""

_DISMISSED: set[asyncio.Task[None]] = set()
"""Links whose worker is still to start, and then to end: an event loop alone would forget their tasks."""


class Link:
    """One worker. `post(worker, event)` gets every event, "adopted" (status=) first and "lost" (reason=) at the end."""

    def __init__(
        self, slot: WorkerSlot, actors: Actors, spec_json: str, folder: Path, post: Callable[[str, Event], None]
    ) -> None:
        self.slot = slot
        self.phase: LinkPhase = "starting"
        self.handle: Any = None
        self.ear, self.warm_up = Ear(), WarmUp()
        self.ready_s = 0.0  # when it said so
        self.is_finishing = False  # it writes its model, and may be silent for long
        self._is_dismissed = False
        self._actors = actors
        self._arguments = (slot, spec_json, str(folder))
        self._post = lambda event: post(slot.worker, event)
        self._task = asyncio.create_task(self._run(), name=f"link {slot.worker}")

    async def status(self) -> Status:
        """Ask the worker. Raises whatever the actor system raises when it is gone."""
        return await self.handle.status.remote()

    def close(self) -> None:
        """Stop listening; the worker goes on."""
        self._task.cancel()

    async def dismiss(self) -> None:
        """Stop listening and end the worker. One that is only just starting is ended as soon as it is there."""
        if self.handle is None and not self._task.done():
            self._is_dismissed = True
            _DISMISSED.add(self._task)
            self._task.add_done_callback(_DISMISSED.discard)
            return
        self._task.cancel()
        await self._actors.stop(self.slot.worker)

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(START_S):
                self.handle = await self._actors.start(self.slot, TrainWorkerActor, *self._arguments)
                if self._is_dismissed:
                    await self._actors.stop(self.slot.worker)
                    return
                status = await self.status()
            self._say({"kind": "adopted", "status": status})
            async for event in listen(*status.pulse, status.events, self._patience_s, self.ear.hear):
                self._say(event)
        except Exception as error:  # an actor system has many words for "gone"
            self._post({"kind": "lost", "reason": str(error) or type(error).__name__})

    def _say(self, event: Event) -> None:
        self.warm_up.hear(event["kind"])
        if event["kind"] == "ready":
            self.ready_s = time.time()
        self._post(event)

    def _patience_s(self) -> float:
        return pulse.PREPARING_SILENT_S if self.phase == "starting" or self.is_finishing else pulse.SILENT_S
