"""A served model says how many engines it could use; engines come and go, and all of it, under its clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from runtime.serving import demand
from runtime.serving.text import TextCodec
from tests.serving.harness import Served, shard_slots, slot
from tests.serving.models import greedy, write_model

pytestmark = pytest.mark.slow

PROMPT, LENGTH = [40, 41, 42], 60


class World:
    """A model with one or two engines of two places each, that sleeps after two seconds."""

    def __init__(self, folder: Path, dir: Path) -> None:
        self.config = write_model(folder)
        self.served = Served(folder, dir, engines={"min": 1, "max": 2}, max_batch=2, max_length=512, idle_s=2.0)
        self.shards = shard_slots(self.config, 2, 2)
        self.reference = TextCodec.from_folder(folder).decode(greedy(folder, PROMPT, LENGTH))

    def have(self, *engines: str) -> None:
        """Be given these engines, and the shards; nothing at all without an engine."""
        slots = [slot(name, "engine", f"n-{name}") for name in engines]
        self.served.assign([*slots, *(self.shards if engines else ())], "move")

    def wanted(self) -> int:
        """Engines that it last said it could use."""
        said = self.served.reports.all("progress")
        return int(said[-1][1]["wanted"]["engine"]) if said else -1

    def wait_for(self, engines: int) -> None:
        self.served.wait(lambda: self.wanted() == engines, f"{engines} engines wanted, last {self.wanted()}")

    def ask(self) -> str:
        """A greedy answer."""
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{self.served.url}/v1/completions", json=body, timeout=90)
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["text"])


class Clients:
    """Ask one after another until `stop`; what they were told."""

    def __init__(self, world: World, count: int) -> None:
        self.told: list[str] = []
        self._world, self._over = world, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            self.told.append(self._world.ask())

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(demand, "HOLD_S", 1.0)
    made = World(tmp_path / "m", tmp_path / "job")
    yield made
    made.served.close()


def test_engines_come_with_the_queue_and_all_of_it_goes_with_the_last_request(world: World) -> None:
    world.have("engine-0")
    clients = Clients(world, 5)
    try:
        world.wait_for(2)
        world.have("engine-0", "engine-1")
        world.served.wait(lambda: world.served.call("engine-1", "status")["tokens"] > 0, "the second engine at work")
    finally:
        clients.stop()
    world.served.wait(lambda: world.wanted() < 2, "fewer engines wanted")  # 1, or 0 at once where a report is late
    world.have("engine-0")
    world.wait_for(0)
    world.have()
    assert set(world.served.actors.handles) == {"job-1-gateway"}
    sleeper = Clients(world, 1)
    world.wait_for(1)
    world.have("engine-2")
    sleeper.stop()
    assert set(clients.told) == set(sleeper.told) == {world.reference}
