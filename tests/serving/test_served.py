"""A served model on real processes and sockets, and what its clients see while workers die and move."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from protocol.models import ModelConfig
from runtime.serving import drift, load_reports
from runtime.serving.text import TextCodec
from runtime.site.controller import WorkerSlot
from tests.serving.harness import Served, shard_slots, slot
from tests.serving.models import greedy, write_model

pytestmark = pytest.mark.slow

PROMPT = [40, 41, 42, 43]
LENGTH = 120
DISTURB_AT = 12  # pieces of text that have come


@dataclass
class World:
    """One served model for all tests of this file; each leaves it with one engine and three shards."""

    served: Served
    folder: Path
    config: ModelConfig
    reference: str
    workers: list[WorkerSlot]
    next_name: int = 10

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.served.url}/v1", api_key="any", timeout=60, max_retries=0)

    def stream(self, disturb: Callable[[], None] = lambda: None, **fields: Any) -> str:
        """A long text, disturbed once it is under way."""
        asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": LENGTH, "temperature": 0, **fields}
        pieces = []
        for chunk in self.client.completions.create(**asked, stream=True, extra_body={"ignore_eos": True}):
            pieces.append(chunk.choices[0].text)
            if len(pieces) == DISTURB_AT:
                disturb()
        return "".join(pieces)

    def fresh(self, old: WorkerSlot) -> WorkerSlot:
        """A successor for a worker, on a new node."""
        self.next_name += 1
        return slot(f"{old.role}-{self.next_name}", old.role, f"n{self.next_name}", list(old.experts))

    def replace(self, old: WorkerSlot, cause: str, *, wait: bool = True, **fields: Any) -> WorkerSlot:
        """The next assignment: a successor in the worker's place."""
        new = self.fresh(old)
        self.workers = [new if worker is old else worker for worker in self.workers]
        self.served.assign(self.workers, cause, wait=wait, **fields)
        return new

    def worker(self, role: str) -> WorkerSlot:
        """The last worker of a role."""
        return [worker for worker in self.workers if worker.role == role][-1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("model") / "m"
    config = write_model(folder)
    patched = pytest.MonkeyPatch()
    patched.setattr(load_reports, "LOADS_S", 0.2)
    served = Served(folder, tmp_path_factory.mktemp("job"))
    workers = [slot("engine-0", "engine", "n9"), *shard_slots(config, 3, 2)]
    served.assign(workers, "start")
    reference = TextCodec.from_folder(folder).decode(greedy(folder, PROMPT, LENGTH))
    served.wait(lambda: served.call("job-1-gateway", "status")["understudies"], "an understudy")
    yield World(served, folder, config, reference, workers)
    patched.undo()
    served.close()
    assert served.reports.all("ended")[0][0][1] == "cancelled"


def test_three_shards_say_what_one_process_says(world: World) -> None:
    assert world.stream() == world.reference  # which also warms everything up
    before = world.served.call("engine-0", "status")["failovers"]
    assert world.stream() == world.reference
    assert world.served.call("engine-0", "status")["failovers"] == before


def test_tokens_of_each_expert_are_told(world: World) -> None:
    world.stream()
    world.served.wait(lambda: world.served.reports.all("expert_loads"), "the experts' loads told")
    (_, tokens), _ = world.served.reports.all("expert_loads")[-1]
    assert len(tokens) == world.config.expert_layers * world.config.experts
    assert sum(tokens) % world.config.experts_per_token == 0


def test_copies_follow_the_load_without_a_rescale(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FEWEST": 1.0, "HOT": 1.2, "WORTH": 0.01}.items():  # what one stream's loads differ by
        monkeypatch.setattr(drift, name, value)
    planned = {slot.worker: set(slot.experts) for slot in world.workers if slot.role == "shard"}
    revisions = world.served.reached_revisions()

    def is_beyond_plan() -> bool:
        assert world.stream() == world.reference
        return any(world.served.call(shard, "status")["experts"] > len(held) for shard, held in planned.items())

    world.served.wait(is_beyond_plan, "a copy beyond the plan")
    for shard, held in planned.items():
        assert world.served.call(shard, "status")["experts"] <= len(held) * (1 + drift.SPARE)
    assert world.served.reached_revisions() == revisions


def test_a_killed_shard_changes_nothing_in_a_running_stream(world: World) -> None:
    victim = world.worker("shard")
    assert world.stream(lambda: world.served.kill(victim.worker)) == world.reference
    world.served.wait(lambda: victim.worker in world.served.reports.workers("lost"), "the loss reported")
    world.served.wait(lambda: world.served.reports.all("reached")[-1][1]["cause"] == "loss", "reached after a loss")
    world.replace(victim, "loss", lost_workers=(victim.worker,))
    assert world.stream() == world.reference


def test_a_frozen_shard_is_overtaken(world: World) -> None:
    victim = world.worker("shard").worker
    try:
        assert world.stream(lambda: world.served.actors.kill(victim, signal.SIGSTOP)) == world.reference
    finally:
        world.served.actors.kill(victim, signal.SIGCONT)


def test_a_drained_shard_is_replaced_before_it_goes(world: World) -> None:
    leaver = world.worker("shard")
    before = world.served.call(world.worker("engine").worker, "status")["failovers"]
    text = world.stream(lambda: world.replace(leaver, "reclaim", wait=False, deadline_s=time.time() + 30))
    assert text == world.reference
    world.served.wait(lambda: leaver.worker in world.served.reports.workers("left"), "the leaver gone")
    assert leaver.worker not in world.served.actors.handles
    world.served.wait(lambda: world.served.revision in world.served.reached_revisions(), "reached")
    assert world.served.call(world.worker("engine").worker, "status")["failovers"] == before


def test_a_drained_engine_hands_its_streams_over(world: World) -> None:
    leaver = world.worker("engine")
    both = [*world.workers, world.fresh(leaver)]
    world.served.assign(both, "grow")
    world.workers = [worker for worker in both if worker is not leaver]
    before = world.served.call("job-1-gateway", "status")["replays"]
    assert world.stream(lambda: world.served.assign(world.workers, "reclaim", wait=False)) == world.reference
    world.served.wait(lambda: leaver.worker in world.served.reports.workers("left"), "the leaver gone")
    assert world.served.call("job-1-gateway", "status")["replays"] == before + 1


def test_a_killed_engines_streams_wait_for_the_next_one(world: World) -> None:
    victim = world.worker("engine")

    def disturb() -> None:
        world.served.kill(victim.worker)
        world.served.wait(lambda: victim.worker in world.served.reports.workers("lost"), "the loss reported")
        world.replace(victim, "loss", wait=False, lost_workers=(victim.worker,))

    assert world.stream(disturb) == world.reference
    world.served.wait(lambda: world.served.revision in world.served.reached_revisions(), "reached")
    _, stall_s = world.served.reports.all("reached")[-1][0]
    assert 0 < stall_s < 60


def test_a_shard_stands_in_for_a_killed_engine_until_the_next_one(world: World) -> None:
    world.served.wait(lambda: world.served.call("job-1-gateway", "status")["understudies"], "an understudy")
    victim = world.worker("engine")
    assert world.stream(lambda: world.served.kill(victim.worker)) == world.reference
    assert world.stream() == world.reference  # where the first was computed before it was read, this one was not
    shards = [worker.worker for worker in world.workers if worker.role == "shard"]
    assert sum(world.served.call(shard, "status")["tokens"] for shard in shards) > 0
    world.served.wait(lambda: victim.worker in world.served.reports.workers("lost"), "the loss reported")
    assert world.stream(lambda: world.replace(victim, "loss", lost_workers=(victim.worker,))) == world.reference
    assert world.served.call(world.worker("engine").worker, "status")["tokens"] > 0


def test_seeded_sampling_is_the_same_after_a_replay(world: World) -> None:
    wild = {"temperature": 1.3, "top_p": 0.95, "seed": 11}
    undisturbed = world.stream(**wild)
    assert undisturbed != world.stream(**{**wild, "seed": 12})
    leaver = world.worker("engine")
    assert world.stream(lambda: world.replace(leaver, "move", wait=False), **wild) == undisturbed


def test_a_parked_job_holds_its_streams(world: World) -> None:
    workers = world.workers
    names = {worker.worker for worker in workers}

    def park_and_resume() -> None:
        world.served.assign([], "reclaim")
        assert names <= set(world.served.reports.workers("left"))
        world.workers = [world.fresh(worker) for worker in workers]
        world.served.assign(world.workers, "start", wait=False)

    assert world.stream(park_and_resume) == world.reference


def test_all_copies_of_an_expert_gone_only_costs_time(world: World) -> None:
    shards = [worker for worker in world.workers if worker.role == "shard"]
    engine = world.worker("engine").worker

    def disturb() -> None:
        for shard in shards:
            world.served.kill(shard.worker)
        world.served.wait(lambda: world.served.call(engine, "status")["orphans"], "an orphaned expert")
        fresh = [world.fresh(shard) for shard in shards]
        world.workers = [world.worker("engine"), *fresh]
        lost = tuple(shard.worker for shard in shards)
        world.served.assign(world.workers, "loss", wait=False, lost_workers=lost)

    assert world.stream(disturb) == world.reference


def test_a_restart_of_the_site_disturbs_nothing(world: World) -> None:
    started = len(world.served.actors.started)
    before = world.served.call(world.worker("engine").worker, "status")["failovers"]
    text = world.stream(lambda: _restart(world))
    assert text == world.reference
    world.served.wait(lambda: world.served.revision in world.served.reached_revisions(), "reached again")
    assert len(world.served.actors.started) == started
    assert not world.served.reports.workers("lost")
    assert world.served.call(world.worker("engine").worker, "status")["failovers"] == before


def _restart(world: World) -> None:
    world.served.restart_site()
    world.served.assign(world.workers, "start", wait=False)


def test_after_a_restart_of_the_site_leavers_of_before_still_leave(world: World) -> None:
    leaver = world.worker("shard")
    new = world.fresh(leaver)
    world.workers = [new if worker is leaver else worker for worker in world.workers]
    world.served.restart_site()
    assert world.stream(lambda: world.served.assign(world.workers, "reclaim", wait=False)) == world.reference
    world.served.wait(lambda: leaver.worker in world.served.reports.workers("left"), "the leaver gone")
    assert leaver.worker not in world.served.actors.handles


def test_a_replacement_that_cannot_start_does_not_hold_up_a_deadline(world: World) -> None:
    leaver = world.worker("shard")
    new = world.fresh(leaver)
    world.served.actors.missing_nodes.add(new.lease.node)
    workers = [new if worker is leaver else worker for worker in world.workers]

    def disturb() -> None:
        world.served.assign(workers, "reclaim", wait=False, deadline_s=time.time() + 3)

    assert world.stream(disturb) == world.reference
    world.served.wait(lambda: leaver.worker in world.served.reports.workers("left"), "the leaver gone")
    assert new.worker in world.served.reports.workers("lost")
    world.workers = [world.fresh(leaver) if worker is leaver else worker for worker in world.workers]
    world.served.assign(world.workers, "loss", lost_workers=(new.worker,))


def test_fifty_clients_each_get_exactly_their_tokens(world: World) -> None:
    prompts = [[50 + n, 60 + n % 7, 70] for n in range(50)]
    alone = {n: greedy(world.folder, prompts[n], 24) for n in (0, 17, 49)}
    codec = TextCodec.from_folder(world.folder)
    client = world.client
    go = threading.Barrier(50)

    def ask(n: int) -> tuple[str, int]:
        go.wait(60)
        answer = client.completions.create(
            model="tiny", prompt=prompts[n], max_tokens=24, temperature=0, extra_body={"ignore_eos": True}
        )
        return answer.choices[0].text, answer.usage.completion_tokens

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    assert all(tokens == 24 for _, tokens in answers)
    for n, tokens in alone.items():
        assert answers[n][0] == codec.decode(tokens)
    assert world.served.call("job-1-gateway", "status")["running"] == 0
