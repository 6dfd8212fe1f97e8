"""Which engine continues which request. Keeps each request's tokens, so that any engine can take it over.

All of it runs on the gateway's event loop. A token counts once: it is taken only from the engine that the sequence
was last given to, in that attempt, and at the next position.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.serving import wire
from runtime.serving.params import Sampled, SamplingParams
from runtime.serving.routing import Address

log = logging.getLogger(__name__)

RECONNECT_S = 0.2
SILENT_S = 10.0
"""Engines send a beat twice a second; one that has been silent for so long is given up."""
MAX_FAULTS = 3
"""A request on which engines failed so often (not: were lost) is given back as an error."""
STALLS_KEPT_S = 300.0


class QueueFull(Exception):
    """No room for another request now."""


class NoCapacity(Exception):
    """Nothing is there to continue this request."""


class GenerationFailed(Exception):
    """The engines cannot continue this request."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a request's reader gets: a token, or the error that ends it."""

    sampled: Sampled | None = None
    finish: str = ""
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class Generation:
    """One sequence. Invariant: prompt and emitted tokens are all that is needed to continue it anywhere."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int = 0  # smaller ones go first
    emitted: list[int] = field(default_factory=list)
    steps: asyncio.Queue[Step] = field(default_factory=asyncio.Queue)
    engine: str = ""
    attempt: int = 0
    faults: int = 0
    finished: bool = False
    last_token_s: float | None = None
    submitted_s: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> str:
        """Its name on the wire in this attempt."""
        return f"{self.id}.{self.attempt}"


@dataclass(slots=True, eq=False)
class EngineLink:
    """The gateway's connection to one engine."""

    name: str
    address: Address
    writer: asyncio.StreamWriter | None = None
    active: dict[str, Generation] = field(default_factory=dict)  # by key
    task: asyncio.Task[None] | None = None

    def send(self, message: dict[str, Any]) -> None:
        """Write a message if connected."""
        if self.writer is not None:
            self.writer.write(wire.encode_json(message))


class Dispatcher:
    """Invariant: a generation that is not finished is either in `waiting` or active on exactly one engine."""

    def __init__(self, secret: bytes, max_batch: int, queue_limit: int) -> None:
        self._secret = secret
        self._max_batch = max_batch
        self._queue_limit = queue_limit
        self._engines: dict[str, EngineLink] = {}
        self._ids = itertools.count(1)
        self._stalls: deque[tuple[float, float]] = deque()  # (when it ended, how long it was)
        self.waiting: list[Generation] = []
        self.tokens = 0
        self.replays = 0
        self.progress_s = time.monotonic()

    # --- requests ----------------------------------------------------------------------------------------------

    def check_room(self, sequences: int) -> None:
        """Raises `QueueFull` if so many more cannot be queued. The batches' free places count as room."""
        places = sum(self._max_batch - len(link.active) for link in self._engines.values() if link.writer)
        if len(self.waiting) + sequences > self._queue_limit + places:
            raise QueueFull(f"{len(self.waiting)} requests are waiting already, the limit is {self._queue_limit}")

    def submit(self, prompt: tuple[int, ...], params: SamplingParams, priority: int = 0) -> Generation:
        """Accept a sequence: from now on it is answered or its client told why not. Smaller priorities go first."""
        generation = Generation(str(next(self._ids)), prompt, params, priority)
        self._queue(generation)
        self._pump()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Nobody wants the rest. Nothing happens if it is finished."""
        if not generation.finished:
            self._end(generation, None)
            self._pump()

    def expire(self, limit_s: float) -> None:
        """Give up requests without a first token if nobody has got one for `limit_s`. Started ones are kept."""
        now_s = time.monotonic()
        for generation in self._live():
            idle_s = now_s - max(self.progress_s, generation.submitted_s)
            if not generation.emitted and idle_s > limit_s:
                self._end(generation, NoCapacity(f"the model has not answered anybody for {idle_s:.0f} s"))

    # --- engines -----------------------------------------------------------------------------------------------

    def set_engines(self, engines: Mapping[str, Address]) -> None:
        """Use exactly these engines; what runs on others is continued on these, or waits for one."""
        for name, link in list(self._engines.items()):
            if engines.get(name) != link.address:
                self._leave(link)
        for name, address in sorted(engines.items()):
            if name not in self._engines:
                link = self._engines[name] = EngineLink(name, address)
                link.task = asyncio.create_task(self._keep(link), name=f"engine {name}")

    async def close(self) -> None:
        """End everything."""
        links = list(self._engines.values())
        self.set_engines({})
        for generation in self._live():
            self._end(generation, NoCapacity("the model is being taken down"))
        await asyncio.gather(*(link.task for link in links if link.task), return_exceptions=True)

    def _leave(self, link: EngineLink) -> None:
        for key in link.active:
            link.send({"op": "cancel", "id": key})
        self._engines.pop(link.name, None)
        self._take_back(link)
        if link.task is not None:
            link.task.cancel()

    def _take_back(self, link: EngineLink) -> None:
        """Queue an engine's sequences again, each in its old place."""
        for generation in link.active.values():
            generation.engine = ""
            self.replays += 1
            self._queue(generation)
        link.active.clear()
        self._pump()

    async def _keep(self, link: EngineLink) -> None:
        """Stay connected to one engine for as long as it is wanted."""
        try:
            while True:
                try:
                    reader, link.writer = await wire.open_stream(link.address, self._secret)
                    log.info("connected to engine %s", link.name)
                    self._pump()
                    await self._listen(link, reader)
                except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                    level = logging.WARNING if link.writer is not None else logging.DEBUG
                    log.log(level, "engine %s is away: %s", link.name, error or type(error).__name__)
                self._disconnect(link)
                await asyncio.sleep(RECONNECT_S)
        finally:
            self._disconnect(link)

    def _disconnect(self, link: EngineLink) -> None:
        if link.writer is not None:
            link.writer.close()
            link.writer = None
        self._take_back(link)

    async def _listen(self, link: EngineLink, reader: asyncio.StreamReader) -> None:
        while True:
            async with asyncio.timeout(SILENT_S):  # not wait_for, which may swallow a cancellation
                frame = await wire.read_frame(reader)
            message = frame.json()
            for item in message.get("tokens", ()):
                self._token(link, item)
            for key, reason in message.get("faults", ()):
                self._fault(link, key, reason)
            self._pump()

    def _pump(self) -> None:
        """Give waiting sequences to the engines with the fewest."""
        while self.waiting:
            links = [x for x in self._engines.values() if x.writer and len(x.active) < self._max_batch]
            if not links:
                return
            link = min(links, key=lambda x: (len(x.active), x.name))
            generation = self.waiting.pop(0)
            generation.engine, generation.attempt = link.name, generation.attempt + 1
            link.active[generation.key] = generation
            link.send(
                {
                    "op": "add",
                    "id": generation.key,
                    "prompt": generation.prompt,
                    "emitted": generation.emitted,
                    "params": generation.params.to_json(),
                }
            )

    def _token(self, link: EngineLink, item: list[Any]) -> None:
        key, position, token, finish, logprob, top = item
        generation = link.active.get(key)
        if generation is None or position != len(generation.emitted):
            return
        now_s = time.monotonic()
        if generation.last_token_s is not None:
            self._stalls.append((now_s, now_s - generation.last_token_s))
            while self._stalls[0][0] < now_s - STALLS_KEPT_S or len(self._stalls) > 100_000:
                self._stalls.popleft()
        generation.last_token_s = now_s
        generation.emitted.append(token)
        self.tokens += 1
        self.progress_s = now_s
        if finish:
            generation.finished = True
            del link.active[key]
        generation.steps.put_nowait(Step(Sampled(token, logprob, tuple(map(tuple, top))), finish))

    def _fault(self, link: EngineLink, key: str, reason: str) -> None:
        generation = link.active.pop(key, None)
        if generation is None:
            return
        log.warning("engine %s failed on request %s: %s", link.name, generation.id, reason)
        generation.faults += 1
        generation.engine = ""
        if generation.faults >= MAX_FAULTS:
            self._end(generation, GenerationFailed(reason))
        else:
            self._queue(generation)

    def _queue(self, generation: Generation) -> None:
        """By priority, then as they came: one that was under way comes before those that never were."""
        bisect.insort(self.waiting, generation, key=lambda g: (g.priority, int(g.id)))

    def _end(self, generation: Generation, error: Exception | None) -> None:
        generation.finished = True
        with contextlib.suppress(ValueError):
            self.waiting.remove(generation)
        link = self._engines.get(generation.engine)
        if link is not None and generation.key in link.active:
            del link.active[generation.key]
            link.send({"op": "cancel", "id": generation.key})
        if error is not None:
            generation.steps.put_nowait(Step(error=error))

    def _live(self) -> list[Generation]:
        return [g for link in self._engines.values() for g in link.active.values()] + list(self.waiting)

    # --- what it measures --------------------------------------------------------------------------------------

    def stall(self, ago_s: float) -> tuple[float, int]:
        """The longest time that a stream stood still within the last `ago_s`, and how many have stood since then."""
        now_s = time.monotonic()
        open_s = [now_s - g.last_token_s for g in self._live() if g.last_token_s is not None]
        ended_s = [length for ended, length in self._stalls if ended >= now_s - ago_s]
        return max([0.0, *open_s, *ended_s]), sum(age > ago_s for age in open_s)

    def counts(self) -> dict[str, float]:
        """For metrics and progress."""
        return {
            "running": sum(len(link.active) for link in self._engines.values()),
            "waiting": len(self.waiting),
            "engines": sum(link.writer is not None for link in self._engines.values()),
            "tokens": self.tokens,
            "replays": self.replays,
        }
