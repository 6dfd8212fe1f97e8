"""The Ray actor around a training worker. Light to import: torch comes in on the training thread, in the background.

All methods are coroutines, so Ray answers them on an event loop while the thread trains.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol import jobspec
from runtime.site.controller import WorkerSlot
from runtime.training.generation import Generation, Holding, Switch
from runtime.training.orders import Orders
from runtime.training.pulse import Pulse

if TYPE_CHECKING:
    from runtime.training.worker import TrainWorker


@dataclass(frozen=True, slots=True)
class Status:
    """A worker at a glance; `order` is the newest switch it was given."""

    pulse: tuple[str, int, str]  # address, port, secret
    events: int  # number of the last event that is reflected here
    phase: str  # runtime.training.worker.Phase
    generation: Generation | None
    order: Switch | None
    step: int
    holdings: tuple[Holding, ...]


class TrainWorkerActor:
    """One worker of a train job."""

    def __init__(self, slot: WorkerSlot, spec_json: str, folder: str) -> None:
        self._slot = slot
        self._orders = Orders()
        self._pulse = Pulse(slot.address)
        self._worker: TrainWorker | None = None
        self._stores: list[Any] = []
        thread = threading.Thread(target=self._run, args=(spec_json, Path(folder)), name="training", daemon=True)
        thread.start()

    async def status(self) -> Status:
        """See `Status`."""
        worker, events = self._worker, self._pulse.count  # the count first: what comes after is told again
        if worker is None:
            events = 0
        elif worker.phase in ("finished", "failed"):
            events -= 1  # its last word is worth hearing again
        return Status(
            pulse=(self._slot.address, self._pulse.port, self._pulse.secret),
            events=events,
            phase=worker.phase if worker else "preparing",
            generation=worker.generation if worker else None,
            order=self._orders.newest,
            step=worker.step if worker else 0,
            holdings=tuple(worker.holdings()) if worker else (),
        )

    async def open_store(self) -> tuple[str, int]:
        """Open a rendezvous for the next switch; where it is. Only once the worker is ready."""
        from runtime.training.group import open_store

        store = open_store(self._slot.address)
        self._stores = [*self._stores[-3:], store]  # the ones before belong to switches long past
        return self._slot.address, store.port

    async def order(self, switch: Switch) -> None:
        """Go over to a generation at the next step boundary."""
        self._orders.give(switch)

    async def cancel(self, number: int) -> None:
        """Call off switches up to this number."""
        self._orders.cancel(number)

    def _run(self, spec_json: str, folder: Path) -> None:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # matrix products that do not depend on where memory lies
        try:
            spec = jobspec.parse_json(spec_json)
            make = _worker_class(spec)
            self._pulse.tell("imported")
            worker = make(self._slot, spec, folder, self._orders, self._pulse)
        except Exception as error:  # nothing above this thread would show it
            self._pulse.tell("failed", message=f"worker {self._slot.worker} cannot start: {error}")
            return
        self._worker = worker
        worker.run()


def _worker_class(spec: jobspec.JobSpec) -> type[TrainWorker]:
    if spec.train is not None and spec.train.is_own:
        from runtime.training.session_worker import SessionWorker

        return SessionWorker
    from runtime.training.worker import TrainWorker

    return TrainWorker
