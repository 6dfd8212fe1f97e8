"""Engine and shards of every kind of model: experts behind sockets say what the model says in one process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from runtime.moe.checkpoint import read_config
from runtime.moe.model import all_experts
from runtime.moe.upcycling import upcycle
from runtime.serving.actors import ModelUnusable
from runtime.serving.device import Device
from runtime.serving.workers import EngineWorker, ShardWorker
from tests.moe.hf_models import saved
from tests.serving.models import greedy
from tests.serving.test_engine_server import SECRET, Gateway

PROMPT, COUNT = [3, 17, 40, 5, 5, 21], 8


@contextmanager
def serving(folder: Path, shards: int) -> Iterator[Gateway]:
    """An engine whose experts lie on `shards` shards, two copies of each where there are two; its own threads."""
    pairs = all_experts(read_config(folder))
    with ExitStack() as stack:
        workers = {f"s{n}": ShardWorker(str(folder), SECRET, "127.0.0.1") for n in range(shards)}
        addresses, holders = {}, {pair: [] for pair in pairs}
        for n, (name, worker) in enumerate(workers.items()):
            stack.callback(worker._server.close)
            mine = [pair for i, pair in enumerate(pairs) if n in (i % shards, (i + 1) % shards)]
            addresses[name] = worker.load(mine)["address"]
            for pair in mine:
                holders[pair].append(name)
        engine = EngineWorker(str(folder), SECRET, "127.0.0.1", 4, 64)
        gateway = Gateway(engine.load()["address"])
        stack.callback(engine._server.close)
        assert engine.set_routing(1, addresses, {pair: tuple(names) for pair, names in holders.items()})
        yield gateway


def said(gateway: Gateway, id: str) -> list[int]:
    gateway.add(id, PROMPT, COUNT)
    return [token for _, _, token, _ in gateway.tokens(COUNT)]


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_experts_on_shards_say_what_one_process_says(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    with serving(tmp_path, 3) as gateway:
        assert said(gateway, "a") == greedy(tmp_path, PROMPT, COUNT)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_engine_and_shards_compute_in_the_numbers_of_their_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(name, tmp_path)
    monkeypatch.setattr(Device, "here", staticmethod(lambda: Device("cpu", torch.bfloat16)))
    with serving(tmp_path, 3) as gateway:
        assert said(gateway, "a") == greedy(tmp_path, PROMPT, COUNT, torch.bfloat16)


def test_shards_may_compute_in_other_numbers_than_their_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("mixtral", tmp_path)
    kinds = itertools.chain([torch.float32] * 3, [torch.bfloat16])
    monkeypatch.setattr(Device, "here", staticmethod(lambda: Device("cpu", next(kinds))))
    with serving(tmp_path, 3) as gateway:
        assert len(said(gateway, "a")) == COUNT


def test_a_dense_model_needs_its_engine_alone(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    with serving(tmp_path, 0) as gateway:
        assert said(gateway, "a") == greedy(tmp_path, PROMPT, COUNT)


def test_an_upcycled_model_on_three_shards_says_what_the_dense_one_says(tmp_path: Path) -> None:
    saved("llama", tmp_path / "dense")
    upcycle(tmp_path / "dense", tmp_path / "routed", experts=8)
    with serving(tmp_path / "routed", 3) as gateway:
        assert said(gateway, "a") == greedy(tmp_path / "dense", PROMPT, COUNT)


def test_an_engine_refuses_a_folder_that_contradicts_itself(tmp_path: Path) -> None:
    saved("mixtral", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(ModelUnusable, match=r"tensor model\.layers\.1\.\S+ has no place"):
        EngineWorker(str(tmp_path), SECRET, "127.0.0.1", 4, 64).load()
