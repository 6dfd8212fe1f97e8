"""The actor classes of a serve job. They import torch and the web server only where they run, not in the site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from runtime.serving.routing import Address, ExpertId


class ModelUnusable(Exception):
    """The model's folder is missing, damaged, of an unknown kind, or without a tokenizer; says which and where."""


class ShardActor:
    """Hosts experts: `runtime.serving.workers.ShardWorker`."""

    actor_options: ClassVar[dict[str, object]] = {"max_concurrency": 4}

    def __init__(self, folder: str, secret: bytes, host: str) -> None:
        from runtime.serving.workers import ShardWorker

        self._worker = ShardWorker(folder, secret, host)

    def load(self, experts: Iterable[ExpertId], urgent: bool) -> dict[str, Any]:
        """See `ShardWorker.load`."""
        return self._worker.load(experts, urgent)

    def drop(self, experts: Iterable[ExpertId]) -> None:
        """See `ShardWorker.drop`."""
        self._worker.drop(experts)

    def understudy(self, max_batch: int, max_length: int) -> dict[str, Any] | None:
        """See `ShardWorker.understudy`."""
        return self._worker.understudy(max_batch, max_length)

    def set_routing(self, epoch: int, shards: dict[str, Address], experts: dict[ExpertId, tuple[str, ...]]) -> bool:
        """See `ShardWorker.set_routing`."""
        return self._worker.set_routing(epoch, shards, experts)

    def room(self) -> int:
        """See `ShardWorker.room`."""
        return self._worker.room()

    def status(self) -> dict[str, Any]:
        """See `ShardWorker.status`."""
        return self._worker.status()


class EngineActor:
    """Runs the dense part: `runtime.serving.workers.EngineWorker`."""

    actor_options: ClassVar[dict[str, object]] = {"max_concurrency": 4}

    def __init__(self, folder: str, secret: bytes, host: str, max_batch: int, max_length: int) -> None:
        from runtime.serving.workers import EngineWorker

        self._worker = EngineWorker(folder, secret, host, max_batch, max_length)

    def load(self) -> dict[str, Any]:
        """See `EngineWorker.load`."""
        return self._worker.load()

    def set_routing(self, epoch: int, shards: dict[str, Address], experts: dict[ExpertId, tuple[str, ...]]) -> bool:
        """See `EngineWorker.set_routing`."""
        return self._worker.set_routing(epoch, shards, experts)

    def status(self) -> dict[str, Any]:
        """See `EngineWorker.status`."""
        return self._worker.status()

    def take_tokens(self) -> list[int]:
        """See `EngineWorker.take_tokens`."""
        return self._worker.take_tokens()


class GatewayActor:
    """The endpoint: `runtime.serving.gateway_worker.GatewayWorker`."""

    actor_options: ClassVar[dict[str, object]] = {"max_concurrency": 4}

    def __init__(self, **settings: Any) -> None:
        from runtime.serving.gateway_worker import GatewayWorker

        self._worker = GatewayWorker(**settings)

    def start(self) -> str:
        """See `GatewayWorker.start`."""
        return self._worker.start()

    def set_engines(self, engines: Mapping[str, Address], understudies: Mapping[str, Address]) -> None:
        """See `GatewayWorker.set_engines`."""
        self._worker.set_engines(engines, understudies)

    def stall(self, ago_s: float) -> tuple[float, int]:
        """See `GatewayWorker.stall`."""
        return self._worker.stall(ago_s)

    def status(self) -> dict[str, float]:
        """See `GatewayWorker.stats`."""
        return self._worker.stats()

    def stop(self) -> None:
        """See `GatewayWorker.stop`."""
        self._worker.stop()
