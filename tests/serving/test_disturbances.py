"""Law 4 for served models: whatever happens to workers, every stream is the text that nobody disturbed.

There are more clients than places: a request is answered once and rightly, or refused with 429 before it began.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from runtime.serving.text import TextCodec
from runtime.site.controller import WorkerSlot
from tests.serving.harness import Served, shard_slots, slot
from tests.serving.models import greedy, write_model

pytestmark = pytest.mark.slow

CLIENTS, LENGTH, SECONDS = 10, 100, 20.0
PLACES = {"max_batch": 2, "queue_limit": 3}


class Owner:
    """Takes, kills and freezes workers at random, and plays the scheduler that replaces them."""

    def __init__(self, served: Served, workers: list[WorkerSlot], seed: int) -> None:
        self._served, self._workers, self._random = served, workers, random.Random(seed)
        self._count = 10
        served.assign(workers, "start")

    def disturb(self) -> str:
        worker = self._random.choice(self._workers)
        event = self._random.choice([self.kill, self.drain, self.drain, self.rush, self.restart_site, self.freeze])
        event(worker)
        return f"{event.__name__} {worker.worker}"

    def kill(self, worker: WorkerSlot) -> None:
        """Once it runs: a worker that has not begun cannot be lost, it is only started."""
        self._served.wait(lambda: worker.worker in self._served.reports.workers("running"), "the worker up")
        self._served.kill(worker.worker)
        self._served.wait(lambda: worker.worker in self._served.reports.workers("lost"), "the loss reported")
        self._replace(worker, "loss", lost_workers=(worker.worker,))

    def drain(self, worker: WorkerSlot) -> None:
        self._replace(worker, "reclaim", deadline_s=time.time() + self._random.uniform(3, 20))

    def rush(self, worker: WorkerSlot) -> None:
        """No time to load before leaving."""
        self._replace(worker, "reclaim", deadline_s=time.time() + 1)

    def restart_site(self, worker: WorkerSlot) -> None:
        self._served.restart_site()
        self._served.assign(self._workers, "start", wait=False)

    def freeze(self, worker: WorkerSlot) -> None:
        self._served.actors.kill(worker.worker, signal.SIGSTOP)
        time.sleep(self._random.uniform(0.1, 1))
        self._served.actors.kill(worker.worker, signal.SIGCONT)

    def _replace(self, worker: WorkerSlot, cause: str, **fields: object) -> None:
        self._count += 1
        new = slot(f"{worker.role}-{self._count}", worker.role, f"n{self._count}", list(worker.experts))
        self._workers = [new if other is worker else other for other in self._workers]
        self._served.assign(self._workers, cause, wait=self._random.random() < 0.5, **fields)


class Busy(Exception):
    """Refused: ask again later."""


def _stream(url: str, prompt: list[int]) -> str:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": LENGTH, "temperature": 0, "stream": True}
    text = ""
    with httpx.stream("POST", f"{url}/v1/completions", json={**body, "ignore_eos": True}, timeout=120) as answer:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) > 0
            raise Busy
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
    return text


def test_no_disturbance_changes_a_text(tmp_path: Path) -> None:
    config = write_model(tmp_path / "m")
    codec = TextCodec.from_folder(tmp_path / "m")
    prompts = [[40 + n, 41] for n in range(CLIENTS)]
    wanted = [codec.decode(greedy(tmp_path / "m", prompt, LENGTH)) for prompt in prompts]
    served = Served(tmp_path / "m", tmp_path / "job", **PLACES)
    over, wrong, right, refused = threading.Event(), [], [], []

    def client(number: int) -> None:
        while not over.is_set():
            try:
                text = _stream(served.url, prompts[number])
            except Busy:
                refused.append(number)
                over.wait(0.5)
                continue
            except Exception as error:
                wrong.append(repr(error))
                return
            (right if text == wanted[number] else wrong).append(text)

    try:
        engines = [slot("engine-0", "engine", "n8"), slot("engine-1", "engine", "n9")]
        owner = Owner(served, [*engines, *shard_slots(config, 3, 2)], seed=20)
        clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in clients:
            thread.start()
        events, end_s = [], time.monotonic() + SECONDS
        while time.monotonic() < end_s:
            events.append(owner.disturb())
        over.set()
        for thread in clients:
            thread.join(120)
        assert not wrong, f"after {events}: {wrong[:2]}"
        assert right
        assert refused
        counts = served.call("job-1-gateway", "status")
        assert (counts["running"], counts["waiting"]) == (0, 0)
    finally:
        over.set()
        served.close()
