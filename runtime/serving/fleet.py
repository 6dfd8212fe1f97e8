"""The actors of one serve job as the controller handles them: start, load, ask, switch, stop. It decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from protocol.jobspec import ServePart
from runtime.serving.actors import EngineActor, GatewayActor, ModelUnusable, ShardActor
from runtime.serving.job_file import JobFile
from runtime.serving.rollout import Up
from runtime.serving.routing import Address, ExpertId, Routing
from runtime.site.controller import Actors, WorkerSlot

CALL_TIMEOUT_S = 5.0
STALL_POLL_S = 0.05
UNREACHABLE_TRIES = 3
UNREACHABLE_WAIT_S = 0.3


def endpoint_name(job: str) -> str:
    """Name of the endpoint's actor."""
    return f"{job}-gateway"


class ActorGone(Exception):
    """The actor died, or does not answer any more."""


class Fleet:
    """Handles to the job's actors. All calls come from the site's event loop."""

    def __init__(self, job: str, name: str, serve: ServePart, actors: Actors, file: JobFile) -> None:
        self._job = job
        self._name = name
        self._serve = serve
        self._folder = str(Path(serve.model).absolute())
        self._actors = actors
        self._file = file
        self._handles: dict[str, Any] = {}
        self._gateway: Any = None

    # --- the endpoint ------------------------------------------------------------------------------------------

    async def open_gateway(self) -> str:
        """Start the endpoint, or find it again; its URL. Raises `ModelUnusable` or `OSError` (port in use)."""
        serve = self._serve
        self._gateway = await self._actors.start_on_head(
            endpoint_name(self._job),
            GatewayActor,
            model=self._name,
            folder=self._folder,
            secret=self._file.secret,
            host=serve.host,
            port=serve.port or self._file.port,
            max_batch=serve.max_batch,
            max_length=serve.max_length,
            queue_limit=serve.queue_limit,
            api_key=serve.api_key,
        )
        url = str(await _told(self._gateway.start.remote()))
        self._file.keep_port(urlsplit(url).port or 0)
        return url

    async def use_engines(self, engines: Mapping[str, Address], understudies: Mapping[str, Address]) -> None:
        """Have the gateway use exactly these, and understudies while there are none. Raises `ActorGone`."""
        await self._ask(self._gateway, "set_engines", dict(engines), dict(understudies))

    async def gateway_counts(self) -> dict[str, float]:
        """Requests and tokens. Raises `ActorGone`."""
        return dict(await self._ask(self._gateway, "status"))

    async def stall(self, ago_s: float) -> tuple[float, int]:
        """Longest stall of a stream within `ago_s`, and streams that have not moved since. Raises `ActorGone`."""
        longest_s, waiting = await self._ask(self._gateway, "stall", ago_s)
        return longest_s, waiting

    async def stall_since(self, since_s: float, wait_s: float) -> float:
        """The longest stall since then, once the streams that stand still move again, or after `wait_s`."""
        longest_s, give_up_s = 0.0, time.monotonic() + wait_s
        with contextlib.suppress(ActorGone):
            longest_s, waiting = await self.stall(time.monotonic() - since_s)
            while waiting and time.monotonic() < give_up_s:
                await asyncio.sleep(STALL_POLL_S)
                longest_s, waiting = await self.stall(time.monotonic() - since_s)
        return longest_s

    async def close_endpoint(self) -> None:
        """Tell the clients that it is over."""
        if self._gateway is not None:
            with contextlib.suppress(ActorGone):
                await self._ask(self._gateway, "stop")

    # --- workers -----------------------------------------------------------------------------------------------

    async def start(self, slot: WorkerSlot) -> tuple[Up, int]:
        """A worker of the slot's kind, up, and its engine's epoch (0 for a shard, which has loaded nothing yet).

        Raises `ModelUnusable`, `NodeMissing`, or whatever the actor died of.
        """
        self._file.add(slot)
        if slot.role == "shard":
            settings: tuple[object, ...] = (self._folder, self._file.secret, slot.address)
            self._handles[slot.worker] = await self._actors.start(slot, ShardActor, *settings)
            return await self.load(slot, frozenset(), urgent=True), 0
        settings = (self._folder, self._file.secret, slot.address, self._serve.max_batch, self._serve.max_length)
        self._handles[slot.worker] = await self._actors.start(slot, EngineActor, *settings)
        told = await _told(self._handles[slot.worker].load.remote())
        return Up(slot, _address(told)), int(told["epoch"])

    async def load(self, slot: WorkerSlot, experts: frozenset[ExpertId], urgent: bool) -> Up:
        """Have a shard load these experts too; `urgent`: somebody waits for them. Raises like `start`."""
        told = await _told(self._handles[slot.worker].load.remote(sorted(experts), urgent))
        return Up(slot, _address(told), frozenset((layer, expert) for layer, expert in told["experts"]))

    async def understudy(self, shard: str) -> tuple[Address, int] | None:
        """Have a shard load an engine as well: its address and epoch; None if it has no room. Raises `ActorGone`."""
        handle = self._handles.get(shard)
        if handle is None:
            raise ActorGone("it has been stopped")
        try:
            told = await handle.understudy.remote(self._serve.max_batch, self._serve.max_length)
        except Exception as error:
            raise ActorGone(first_line(error)) from error
        return None if told is None else (_address(told), int(told["epoch"]))

    async def drop(self, worker: str, experts: frozenset[ExpertId]) -> None:
        """Have a shard free these experts. Raises `ActorGone`."""
        await self._ask(self._handles.get(worker), "drop", sorted(experts))

    async def route(self, engine: str, table: Routing) -> None:
        """Give an engine a table; it goes by it when this returns. Raises `ActorGone`."""
        handle = self._handles.get(engine)
        await self._ask(handle, "set_routing", table.epoch, dict(table.shards), dict(table.experts))

    async def status(self, worker: str) -> dict[str, Any]:
        """Whether the worker lives. Raises `ActorGone`."""
        return dict(await self._ask(self._handles.get(worker), "status"))

    async def take_tokens(self, engine: str) -> list[int]:
        """Tokens that each expert got from an engine since this was asked last; none from one that has gone."""
        with contextlib.suppress(ActorGone):
            return list(await self._ask(self._handles.get(engine), "take_tokens"))
        return []

    async def room(self, shard: str) -> int:
        """How many more experts a shard could hold; none where it has gone."""
        with contextlib.suppress(ActorGone):
            return int(await self._ask(self._handles.get(shard), "room"))
        return 0

    async def stop(self, worker: str) -> None:
        """End a worker."""
        self._handles.pop(worker, None)
        await self._actors.stop(worker)
        self._file.remove(worker)

    async def _ask(self, handle: Any, method: str, *args: object) -> Any:
        if handle is None:
            raise ActorGone("it has been stopped")
        for left in reversed(range(UNREACHABLE_TRIES)):
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    return await getattr(handle, method).remote(*args)
            except Exception as error:
                passing = isinstance(error, TimeoutError) or "Unavailable" in type(error).__name__
                if not (passing and left):
                    raise ActorGone(first_line(error)) from error
                await asyncio.sleep(UNREACHABLE_WAIT_S)
        raise AssertionError("unreachable")


async def _told(reference: Any) -> Any:
    """The answer of an actor; what it raised itself comes out bare of Ray's wrapping."""
    try:
        return await reference
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ModelUnusable | OSError):
            raise cause from None
        raise


def _address(told: Mapping[str, Any]) -> Address:
    host, port = told["address"]
    return str(host), int(port)


def first_line(error: BaseException) -> str:
    """An error in one line for people."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
