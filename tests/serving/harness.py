"""A served model on local processes, driven by the real controller on an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from protocol.jobspec import JobSpec, parse
from protocol.models import ModelConfig
from runtime.serving.controller import ServeController
from runtime.site.controller import Assignment, LeaseKey, WorkerSlot
from tests.serving.local_actors import LocalActors

PATIENCE_S = 90.0


class Recorder:
    """Implements `Reports`: keeps all that was said."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def keep(*args: Any, **kwargs: Any) -> None:
            self.said.append((name, args, kwargs))

        return keep

    def all(self, kind: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What was said of one kind."""
        return [(args, kwargs) for name, args, kwargs in self.said if name == kind]

    def reached(self, assignment: Assignment, stall_s: float, **kwargs: Any) -> None:
        self.said.append(("reached", (assignment, stall_s), kwargs))

    def workers(self, state: str) -> list[str]:
        """Workers that were said to be in a state."""
        return [args[1].worker for args, _ in self.all("worker") if args[2] == state]


def shard_slots(config: ModelConfig, count: int, copies: int, first: int = 0) -> list[WorkerSlot]:
    """Shards `first` ... that hold `copies` copies of every expert between them."""
    held: dict[int, list[tuple[int, int]]] = {i: [] for i in range(count)}
    for layer in range(config.layers):
        for expert in range(config.experts):
            for copy in range(copies):
                held[(expert + copy) % count].append((layer, expert))
    return [slot(f"shard-{first + i}", "shard", f"n{first + i}", held[i]) for i in range(count)]


def slot(worker: str, role: str, node: str, experts: list[tuple[int, int]] | None = None) -> WorkerSlot:
    """A worker on a node."""
    return WorkerSlot(worker, role, LeaseKey(node, 1), ("cpu:0",), tuple(experts or ()))


def serve_spec(folder: Path, **fields: Any) -> JobSpec:
    """A serve job for a folder."""
    return parse({"kind": "serve", "name": "tiny", "serve": {"model": str(folder), **fields}})


class Served:
    """A serve job that runs on this machine until `close`."""

    def __init__(self, folder: Path, dir: Path, **fields: Any) -> None:
        self.spec = serve_spec(folder, **fields)
        self.dir = dir
        self.actors = LocalActors()
        self.reports = Recorder()
        self.revision = 0
        self._url = ""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.controller = self.do(self._make())

    async def _make(self) -> ServeController:
        return ServeController("job-1", self.actors, self.reports, self.dir)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the controller's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def assign(self, workers: list[WorkerSlot], cause: str = "move", *, wait: bool = True, **fields: Any) -> None:
        """Hand the controller the next assignment; wait until it says that it is reached."""
        self.revision += 1
        assignment = Assignment("job-1", self.revision, tuple(workers), cause, spec=self.spec, **fields)
        self.do(self.controller.assign(assignment))
        if wait:
            self.wait(lambda: self.revision in self.reached_revisions(), f"revision {self.revision} reached")

    def restart_site(self) -> None:
        """The site process comes back: a new controller over the same actors."""
        self.do(self.controller.detach())
        self.reports = Recorder()
        self.controller = self.do(self._make())

    def reached_revisions(self) -> list[int]:
        """Revisions that were reported as reached, in order."""
        return [args[0].revision for args, _ in self.reports.all("reached")]

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Until the condition holds; fails if it never does or the job ends before."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"never: {what}; said: {self.reports.said[-12:]}"
            time.sleep(0.02)

    def kill(self, worker: str) -> None:
        """SIGKILL a worker's process."""
        self.actors.kill(worker)

    def call(self, worker: str, method: str, *args: Any) -> Any:
        """Ask an actor."""

        async def ask() -> Any:
            return await getattr(self.actors.handles[worker], method).remote(*args)

        return self.do(ask())

    @property
    def url(self) -> str:
        """Where the model is served; the same for the job's whole life."""
        self.wait(lambda: self._url or self.reports.all("endpoint"), "an endpoint")
        for args, _ in self.reports.all("endpoint"):
            self._url = self._url or args[1]
            assert args[1] == self._url
        return self._url

    def close(self) -> None:
        """End everything."""
        self.do(self.controller.end("test over"))
        self.actors.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
