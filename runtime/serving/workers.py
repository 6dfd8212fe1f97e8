"""Shard and engine as their actors see them: plain classes whose methods return at once or load from disk.

What they return travels through Ray, so it is made of plain values. Faults of the model's folder raise
`ModelUnusable`, which names what is wrong.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime.moe.checkpoint import DamagedCheckpoint, ModelFolder
from runtime.moe.description import describe, examine
from runtime.moe.expert_bank import ExpertBank
from runtime.moe.key_value_pool import cache_factory
from runtime.moe.packed import packed
from runtime.serving.actors import ModelUnusable
from runtime.serving.background import Background, give_back
from runtime.serving.dataplane import ExpertPlane
from runtime.serving.device import Device
from runtime.serving.engine import Engine, RemoteExperts
from runtime.serving.engine_server import EngineServer
from runtime.serving.pages import Pages
from runtime.serving.routing import Address, ExpertId, Routing
from runtime.serving.sequences import StepScheduler
from runtime.serving.shard import ShardServer

STEP_TOKENS = 256
"""Most tokens of one step: bounds how long running streams wait while a prompt is read."""


MARGIN = 2.0
"""What a shard takes beyond its experts must leave as much memory free as it takes."""

SWITCH_S = 0.0002
"""So soon a thread that wants the interpreter gets it. With Python's 0.005 each answer of a shard would wait several
times so long while another of its threads loads, plans or is asked how it does."""


class FolderExperts:
    """Experts of a model folder, read one by one when they are asked for."""

    def __init__(self, folder: Path, device: Device) -> None:
        self._folder = folder
        self._device = device
        self._bank = ExpertBank(device.name, device.dtype)
        self._changing = threading.Lock()
        self._runs = 0
        self._background = Background(lambda: self._runs)

    def load(self, experts: Iterable[ExpertId], urgent: bool = True) -> int:
        """Have these experts too, where it is not urgent without disturbing anybody; the bytes read. Raises
        `DamagedCheckpoint`."""
        portions: dict[int, list[ExpertId]] = {}  # a GPU's layer is laid out as one, else one expert at a time is moved
        for n, expert in enumerate(sorted(set(experts) - self._bank.held)):
            portions.setdefault(n if self._device.name == "cpu" else expert[0], []).append(expert)
        if not portions:
            return 0
        with ModelFolder(self._folder, self._device.dtype) as folder:
            sizes: list[int] = []

            def move(keys: list[ExpertId]) -> None:
                read = {key: folder.expert(key) for key in keys}
                with self._changing:
                    self._bank.add(read)  # a copy, so that no call waits for the disk and the folder may be replaced
                sizes.extend(matrix.nbytes for expert in read.values() for matrix in expert)

            if urgent:
                for keys in portions.values():
                    move(keys)
            else:
                self._background.each(move, portions.values())
            return sum(sizes)

    def drop(self, experts: Iterable[ExpertId]) -> None:
        """Free these experts' memory."""
        with self._changing:
            self._bank.drop(experts)
        give_back()

    def loaded(self) -> frozenset[ExpertId]:
        """What is in memory now."""
        return self._bank.held

    def run(self, layer: int, x_PD: torch.Tensor, experts: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        """See `ExpertBank.run`."""
        self._runs += 1
        return self._bank.run(layer, x_PD, experts, counts)


class ShardWorker:
    """Hosts experts for one job."""

    def __init__(self, folder: str, secret: bytes, host: str) -> None:
        self._folder, self._secret, self._host = folder, secret, host
        self._device = Device.here()
        self._store = FolderExperts(Path(folder), self._device)
        self._server = ShardServer(self._store, secret, host)
        self._understudy: EngineWorker | None = None
        self._lock = threading.Lock()
        sys.setswitchinterval(SWITCH_S)
        self._server.start()

    def load(self, experts: Iterable[ExpertId], urgent: bool = True) -> dict[str, Any]:
        """Have these experts too; where they answer, and the bytes read. Raises `ModelUnusable`."""
        try:
            read = self._store.load([(layer, expert) for layer, expert in experts], urgent)
        except (DamagedCheckpoint, OSError) as error:
            raise ModelUnusable(str(error)) from None
        return {"address": self._server.address, "bytes": read, "experts": sorted(self._store.loaded())}

    def drop(self, experts: Iterable[ExpertId]) -> None:
        """Free experts that no table names any more."""
        self._store.drop([(layer, expert) for layer, expert in experts])

    def understudy(self, max_batch: int, max_length: int) -> dict[str, Any] | None:
        """Hold an engine as well, which stands by; see `EngineWorker.load`. None if memory is short."""
        with self._lock:
            if self._understudy is None and self._has_room(max_batch * max_length):
                self._understudy = EngineWorker(self._folder, self._secret, self._host, max_batch, max_length)
        return None if self._understudy is None else self._understudy.load()

    def set_routing(self, epoch: int, shards: dict[str, Address], experts: dict[ExpertId, tuple[str, ...]]) -> bool:
        """See `EngineWorker.set_routing`; of the one that stands by."""
        return self._understudy is not None and self._understudy.set_routing(epoch, shards, experts)

    def status(self) -> dict[str, Any]:
        """What it holds and has done."""
        tokens = self._understudy.status()["tokens"] if self._understudy else 0
        return {
            "experts": len(self._store.loaded()),
            "calls": self._server.calls,
            "compute_s": self._server.compute_s,
            "tokens": tokens,
        }

    def room(self) -> int:
        """How many more experts it could load and leave as much memory free as they take."""
        config = describe(Path(self._folder)).config
        return int(self._device.free_bytes() / MARGIN) // (config.expert_parameters * self._device.dtype.itemsize)

    def _has_room(self, cache_tokens: int) -> bool:
        config = describe(Path(self._folder)).config
        each = self._device.dtype.itemsize
        needed = config.dense_parameters * each + config.cache_bytes(cache_tokens, each)
        return self._device.free_bytes() > MARGIN * needed


class EngineWorker:
    """Runs the dense part of a model for one job."""

    def __init__(self, folder: str, secret: bytes, host: str, max_batch: int, max_length: int) -> None:
        self._folder = Path(folder)
        self._secret = secret
        self._host = host
        self._max_batch = max_batch
        self._max_length = max_length
        self._device = Device.here()
        self._plane = ExpertPlane(secret)
        self._server: EngineServer | None = None
        self._experts: RemoteExperts | None = None
        self._lock = threading.Lock()
        sys.setswitchinterval(SWITCH_S)

    def load(self) -> dict[str, Any]:
        """Load the model unless that is done; where it answers. Raises `ModelUnusable`."""
        with self._lock:
            if self._server is None:
                self._server = self._build()
                self._server.start()
        return {"address": self._server.address, "epoch": self._plane.epoch}

    def set_routing(self, epoch: int, shards: dict[str, Address], experts: dict[ExpertId, tuple[str, ...]]) -> bool:
        """Use a newer table; when this returns no call goes by the old one."""
        return self._plane.set_routing(Routing(epoch, shards, experts))

    def status(self) -> dict[str, Any]:
        """How it does: for the controller and for measurements."""
        plane, server = self._plane, self._server
        return {
            "epoch": plane.epoch,
            "shards": plane.live_shards(),
            "orphans": list(plane.orphans),
            "failovers": plane.failovers,
            "hedges": plane.hedges,
            "hops": plane.hops,
            "hop_s": plane.hop_s,
            "steps": server.steps if server else 0,
            "busy_s": server.busy_s if server else 0.0,
            "tokens": server.tokens if server else 0,
        }

    def take_tokens(self) -> list[int]:
        """See `RemoteExperts.take_tokens`; none before the model is loaded."""
        return self._experts.take_tokens() if self._experts else []

    def _build(self) -> EngineServer:
        try:
            examine(self._folder)
            with ModelFolder(self._folder, self._device.dtype) as folder:
                model = packed(folder.dense_model().to(self._device.name))
        except (DamagedCheckpoint, OSError) as error:
            raise ModelUnusable(str(error)) from None
        config, tokens = model.config, self._max_batch * self._max_length
        new_cache = cache_factory(config, self._device.name, self._device.dtype)
        pages = Pages(new_cache, tokens, config.localised_filtering)
        scheduler = StepScheduler(self._max_batch, STEP_TOKENS, tokens, pages.open)
        self._experts = RemoteExperts(self._plane, config.expert_layers, config.experts)
        engine = Engine(model, self._experts, scheduler, pages)
        return EngineServer(engine, config.vocab_size, self._secret, self._host)
