"""The `Actors` seam with local processes instead of Ray: calls over a unix socket, real SIGKILLs."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from runtime.site.controller import LeaseKey, NodeMissing, WorkerSlot


def main() -> None:
    """The process of one actor: what it is comes pickled through standard input."""
    path, actor_class, args, kwargs = pickle.load(sys.stdin.buffer)
    asyncio.run(_answer(path, actor_class(*args, **kwargs)))


async def _answer(path: str, actor: Any) -> None:
    async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(8)
        if not head:
            return  # somebody only looked whether we listen
        size = int.from_bytes(head, "big")
        method, args = pickle.loads(await reader.readexactly(size))
        try:
            result: Any = (True, await getattr(actor, method)(*args))
        except Exception:
            result = (False, traceback.format_exc())
        writer.write(pickle.dumps(result))
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(call, path) as server:
        await server.serve_forever()


class Method:
    """Looks like a method of a Ray actor's handle."""

    def __init__(self, path: str, name: str) -> None:
        self._path, self._name = path, name

    async def remote(self, *args: Any) -> Any:
        reader, writer = await asyncio.open_unix_connection(self._path)
        body = pickle.dumps((self._name, args))
        writer.write(len(body).to_bytes(8, "big") + body)
        answer = await reader.read()
        writer.close()
        if not answer:
            raise ConnectionError("the actor died")
        good, result = pickle.loads(answer)
        if not good:
            raise RuntimeError(result)
        return result


class Handle:
    """Looks like a Ray actor's handle."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Method:
        if name.startswith("_"):
            raise AttributeError(name)
        return Method(self._path, name)


def _spawn(actor: tuple[Any, ...]) -> subprocess.Popen[bytes]:
    # one thread each: several workers share two cores
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from tests.training.local_actors import main; main()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2])
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(actor))
    process.stdin.close()
    return process


async def _listens(path: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


class LocalActors:
    """Processes by name, which outlive a controller. `gone` holds leases whose node is away."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fw-")
        self._count = itertools.count()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._paths: dict[str, str] = {}
        self.gone: set[LeaseKey] = set()

    async def start(self, slot: WorkerSlot, actor_class: type, *args: object, **kwargs: object) -> Handle:
        """See `runtime.site.controller.Actors`."""
        if slot.lease in self.gone:
            raise NodeMissing(str(slot.lease))
        process = self.processes.get(slot.worker)
        if process is None or process.poll() is not None:
            path = str(Path(self._folder.name) / str(next(self._count)))
            process = _spawn((path, actor_class, args, kwargs))
            self.processes[slot.worker], self._paths[slot.worker] = process, path
        while not await _listens(self._paths[slot.worker]):
            if process.poll() is not None:
                raise RuntimeError("the actor died as it started")
            await asyncio.sleep(0.01)
        return Handle(self._paths[slot.worker])

    async def start_on_head(self, name: str, actor_class: type, *args: object, **kwargs: object) -> Handle:
        """See `runtime.site.controller.Actors`."""
        raise NotImplementedError("training has nothing on the head")

    async def stop(self, name: str) -> None:
        """See `runtime.site.controller.Actors`."""
        self.kill(name)

    def kill(self, name: str) -> None:
        """SIGKILL, and nothing if it is gone."""
        process = self.processes.get(name)
        if process is not None:
            process.kill()
            process.wait()

    def pause(self, name: str) -> None:
        """SIGSTOP: the worker hangs."""
        os.kill(self.processes[name].pid, signal.SIGSTOP)

    def alive(self) -> set[str]:
        """Names of live actors."""
        return {name for name, process in self.processes.items() if process.poll() is None}

    def close(self) -> None:
        """Kill whatever is left."""
        for name in self.processes:
            self.kill(name)
        self._folder.cleanup()
