"""A dense model, from the folder to the answer, on the path that users take."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import yaml

from fallow.local_cluster import LocalCluster
from fallow.results import Job
from runtime.serving.text import TextCodec
from tests.end_to_end.conftest import Fallow
from tests.end_to_end.small import until
from tests.moe.hf_models import saved
from tests.moe.smollm2 import imported
from tests.serving.models import byte_tokenizer, greedy, write_model

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Dense:
    """A dense model, and what it says to a prompt."""

    folder: Path
    prompt: list[int]
    length: int
    text: str


def _tiny(folder: Path) -> Path:
    saved("llama", folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(params=["tiny", "SmolLM2"])
def dense(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Dense]:
    make, prompt, length = {
        "tiny": (_tiny, [3, 17, 40, 5], 400),
        "SmolLM2": (imported, [504, 3575, 282, 4649, 314], 64),  # "The capital of France is"
    }[request.param]
    folder = make(tmp_path / "dense")
    yield Dense(folder, prompt, length, TextCodec.from_folder(folder).decode(greedy(folder, prompt, length)))
    shutil.rmtree(folder)


def _streamed(endpoint: str, model: Dense, name: str = "dense") -> str:
    client = openai.OpenAI(base_url=f"{endpoint.removesuffix('/v1')}/v1", api_key="any", timeout=120, max_retries=0)
    chunks = client.completions.create(
        model=name,
        prompt=model.prompt,
        max_tokens=model.length,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    return "".join(choice.text for chunk in chunks for choice in chunk.choices)


def test_a_dense_model_moves_in_mid_stream_and_nobody_sees_it(cluster: LocalCluster, dense: Dense) -> None:
    part = {"model": str(dense.folder), "max_length": 512}
    ticket = cluster.client.submit({"kind": "serve", "name": "dense", "serve": part}).job
    job = until(cluster.client, ticket, lambda now: bool(now.endpoint) and now.state == "running")
    node, has_moved = job.workers[0].node, threading.Event()

    def ask_on() -> list[str]:
        texts = []
        while not has_moved.is_set():
            texts.append(_streamed(job.endpoint, dense))
        return texts

    try:
        with ThreadPoolExecutor(2) as pool:  # so that one is under way whenever the other has just ended
            asking = [pool.submit(ask_on) for _ in range(2)]
            try:
                cluster.reclaim(node, 60.0)
                moved = until(cluster.client, ticket, lambda now: now.metrics.get("replays", 0) >= 1)
                assert node not in {worker.node for worker in moved.workers}
            finally:
                has_moved.set()
        assert {text for asked in asking for text in asked.result()} == {dense.text}
    finally:
        cluster.client.cancel(ticket)
        cluster.client.wait(ticket, 60)
        until_handed_back(cluster, node)
        cluster.lend(node)


def test_engines_come_with_the_queue_go_with_it_and_come_again(cluster: LocalCluster, tmp_path: Path) -> None:
    folder, prompt, length = tmp_path / "moe", [40, 41, 42], 120
    write_model(folder)
    model = Dense(folder, prompt, length, TextCodec.from_folder(folder).decode(greedy(folder, prompt, length)))
    engines, shards = {"min": 1, "max": 2}, {"min": 1, "max": 1}
    part = {"model": str(folder), "engines": engines, "shards": shards, "copies": 1, "max_batch": 2, "idle_s": 3}
    ticket = cluster.client.submit({"kind": "serve", "name": "moe", "serve": part}).job

    def have(count: int) -> Job:
        def has(job: Job) -> bool:
            is_up = job.state == "running" and job.metrics.get("engines") == count
            return sum(worker.role == "engine" for worker in job.workers) == count and (is_up or not count)

        return until(cluster.client, ticket, has)

    endpoint = until(cluster.client, ticket, lambda job: bool(job.endpoint)).endpoint  # it may be asleep again already
    is_enough, texts = threading.Event(), set[str]()

    def ask_on() -> None:
        while not is_enough.is_set():
            texts.add(_streamed(endpoint, model, "moe"))

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask_on) for _ in range(6)]
        try:
            have(2)
        finally:
            is_enough.set()
    asleep = have(0)
    assert not asleep.workers  # no shard either
    assert [asked.result() for asked in asking] == [None] * 6
    assert _streamed(endpoint, model, "moe") in texts
    until(cluster.client, ticket, lambda job: any(each.width for each in job.rescales[len(asleep.rescales) :]))
    assert texts == {model.text}


def until_handed_back(cluster: LocalCluster, node: str) -> None:
    """Until the owner has the node again."""
    deadline_s = time.monotonic() + 90
    while any(known.id == node and known.epoch for known in cluster.client.nodes()):
        assert time.monotonic() < deadline_s, f"{node} was not handed back"
        time.sleep(0.1)


def test_a_dense_model_is_served_by_its_engine_alone(cluster: LocalCluster, fallow: Fallow, tmp_path: Path) -> None:
    folder = _tiny(tmp_path / "dense")
    part = {"model": str(folder), "max_length": 64}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump({"kind": "serve", "name": "dense", "serve": part}))
    checked = fallow("submit", "--check", "--json", str(path)).json
    assert checked["memory"]["expert_bytes"] == 0
    assert checked["fit"]["fits"]
    job = until(
        cluster.client, cluster.client.submit(path).job, lambda now: bool(now.endpoint) and now.state == "running"
    )
    assert [worker.role for worker in job.workers] == ["engine"]
    client = openai.OpenAI(base_url=f"{job.endpoint.removesuffix('/v1')}/v1", api_key="any", timeout=60, max_retries=0)
    prompt = [3, 17, 40, 5]
    answer = client.completions.create(
        model="dense", prompt=prompt, max_tokens=8, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].text == TextCodec.from_folder(folder).decode(greedy(folder, prompt, 8))
