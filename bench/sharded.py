"""Expert shards as processes of this machine, for benchmarks of the engine without Ray."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from runtime.moe.description import describe
from runtime.serving.dataplane import ExpertPlane
from runtime.serving.engine import RemoteExperts
from runtime.serving.routing import Routing, table

SECRET = b"bench"


def _shard(pipe: Connection, folder: str, experts: list[tuple[int, int]]) -> None:
    import torch

    from runtime.serving.workers import ShardWorker

    torch.set_num_threads(1)
    worker = ShardWorker(folder, SECRET, "127.0.0.1")
    pipe.send(worker.load(experts)["address"])
    while pipe.recv():
        pipe.send(worker.status()["compute_s"])


class Sharded:
    """Every expert on one of `count` shards, in turn. Use it in a `with`."""

    def __init__(self, folder: Path, count: int) -> None:
        config = describe(folder).config
        pairs = [(layer, expert) for layer in range(config.expert_layers) for expert in range(config.experts)]
        spawn = multiprocessing.get_context("spawn")
        self._pipes, shards = [], {}
        for number in range(count):
            mine, theirs = spawn.Pipe()
            spawn.Process(target=_shard, args=(theirs, str(folder), pairs[number::count]), daemon=True).start()
            self._pipes.append(mine)
        for number, pipe in enumerate(self._pipes):
            shards[f"shard-{number}"] = (pipe.recv(), pairs[number::count])
        self.plane = ExpertPlane(SECRET)
        self._table: Routing = table(1, shards)
        self.plane.set_routing(self._table)
        self.executor = RemoteExperts(self.plane, config.expert_layers, config.experts)

    def compute_s(self) -> float:
        """Seconds that the shards have computed, all together."""
        for pipe in self._pipes:
            pipe.send(True)
        return float(sum(pipe.recv() for pipe in self._pipes))

    def __enter__(self) -> Sharded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.plane.close()
        for pipe in self._pipes:
            pipe.send(False)
