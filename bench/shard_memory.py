"""Whether a shard's memory follows what it holds and nothing else.

    python -m bench.shard_memory [--rounds 300] [--json FILE]

A real shard in a process of its own, with half of the experts of a small MoE. In each round it loads some that it lacks
(at times urgently, as when nobody else has them) and drops as many others, and answers calls of 1 to 256 tokens in
between, a few of them on a fresh connection. Held against the bytes of its experts is what its private memory is above
that of the same process without any expert. The first fifth of the rounds is its warm-up.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.memory_watch import private_bytes_of
from bench.report import Row, argument_parser, publish, row
from bench.served_models import olmoe
from bench.sharded import SECRET
from runtime.moe.description import describe
from runtime.serving.dataplane import ExpertPlane
from runtime.serving.routing import ExpertId, table

MOVED = 30
TOKENS = (1, 3, 8, 64, 256)
LARGEST_GROWTH = 1.05
"""Of what a shard holds for an expert, from its warm-up to the end."""


def _shard(pipe: Connection, folder: str) -> None:
    from runtime.serving.workers import ShardWorker

    torch.set_num_threads(1)
    worker = ShardWorker(folder, SECRET, "127.0.0.1")
    while (asked := pipe.recv()) is not None:
        method, *given = asked
        pipe.send(getattr(worker, method)(*given))


class Shard:
    """The process; `ask` calls a method of its `ShardWorker`."""

    def __init__(self, folder: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_shard, args=(theirs, str(folder)), daemon=True)
        self._process.start()

    def ask(self, method: str, *given: object) -> Any:
        """What it returns."""
        self._pipe.send((method, *given))
        return self._pipe.recv()

    def private_mb(self) -> float:
        """See `private_bytes_of`."""
        return private_bytes_of(psutil.Process(self._process.pid)) / 1e6

    def close(self) -> None:
        """End it."""
        self._pipe.send(None)
        self._process.join()


class Engine:
    """Calls the shard as engines do."""

    def __init__(self, address: tuple[str, int], width: int, chance: random.Random) -> None:
        self._address, self._width, self._chance = address, width, chance
        self._epoch, self._plane = 0, ExpertPlane(SECRET)

    def call(self, held: list[ExpertId]) -> None:
        """Some batches through some of the experts that the shard has, at times on a new connection."""
        if self._chance.random() < 0.1:
            self._plane.close()
            self._plane = ExpertPlane(SECRET)
        self._epoch += 1
        self._plane.set_routing(table(self._epoch, {"shard": (self._address, held)}))
        for tokens in TOKENS:
            layer = self._chance.choice(held)[0]
            experts = torch.tensor([expert for at, expert in held if at == layer])
            ids_TK = experts[torch.randint(len(experts), (tokens, 1))]
            self._plane.run(layer, torch.randn(tokens, self._width), ids_TK)

    def close(self) -> None:
        """Hang up."""
        self._plane.close()


def measured(folder: Path, rounds: int) -> tuple[list[float], float]:
    """MB above the empty shard after each round, and the MB of the experts themselves."""
    config, chance = describe(folder).config, random.Random(0)
    every = [(layer, expert) for layer in range(config.expert_layers) for expert in range(config.experts)]
    held, above_mb = set(every[::2]), []
    shard = Shard(folder)
    first = shard.ask("load", [])
    empty_mb = shard.private_mb()
    expert_mb = shard.ask("load", sorted(held))["bytes"] / 1e6
    engine = Engine(tuple(first["address"]), config.hidden_size, chance)
    for number in range(rounds):
        engine.call(sorted(held))
        fresh = chance.sample(sorted(set(every) - held), MOVED)
        gone = chance.sample(sorted(held), MOVED)
        shard.ask("load", fresh, number % 5 == 0)
        held = (held | set(fresh)) - set(gone)
        engine.call(sorted(held))
        shard.ask("drop", gone)
        above_mb.append(shard.private_mb() - empty_mb)
    engine.close()
    shard.close()
    return above_mb, expert_mb


def rows_of(above_mb: list[float], expert_mb: float) -> list[Row]:
    """What is held for its experts' bytes, once warm and at the end."""
    warm = above_mb[len(above_mb) // 5 :]
    tenth = max(1, len(warm) // 10)
    begin, end = statistics.median(warm[:tenth]), statistics.median(warm[-tenth:])
    return [
        row("bytes of the experts that it holds", "MB", expert_mb),
        row("held beyond an empty shard, once warm", "MB", begin),
        row("held beyond an empty shard, at the end", "MB", end),
        row("most of all rounds", "MB", max(above_mb)),
        row("held for an expert's bytes, at the end", "ratio", end / expert_mb),
        row("at the end over once warm", "ratio", end / begin, at_most=LARGEST_GROWTH),
    ]


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as name:
        publish("shard_memory", rows_of(*measured(olmoe(Path(name)), options.rounds)), options.json)


if __name__ == "__main__":
    main()
