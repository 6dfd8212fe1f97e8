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
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.serving import wire
from runtime.serving.params import Sampled, SamplingParams
from runtime.serving.routing import Address

log = logging.getLogger(__name__)

RECONNECT_S = 0.2
SILENT_S = 3.0
"""Engines send a beat twice a second; one that has been silent for so long is given up where another can go on."""
LONG_SILENT_S = 10.0
"""As long as that, where none can."""
HANDOVER_S = 3.0
"""An engine that is to leave may take this long to bring to another what it has computed."""
CONNECT_S = 1.0
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
    warm: str = ""  # engine that has been given what others computed of it
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
    is_understudy: bool = False  # takes nothing while any other engine is connected
    writer: asyncio.StreamWriter | None = None
    active: dict[str, Generation] = field(default_factory=dict)  # by key
    task: asyncio.Task[None] | None = None
    mirrored_to: Address | None = None  # which understudy is shown all that it computes
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    handed: asyncio.Event = field(default_factory=asyncio.Event)  # over, or no longer able to

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
        self._relief: asyncio.Future[None] | None = None
        self.tokens = 0
        self.replays = 0
        self.progress_s = time.monotonic()

    # --- requests ----------------------------------------------------------------------------------------------

    def check_room(self, sequences: int) -> None:
        """Raises `QueueFull` if so many more cannot be queued. The batches' free places count as room."""
        places = sum(self._max_batch - len(link.active) for link in self._usable())
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

    def set_engines(self, engines: Mapping[str, Address], understudies: Mapping[str, Address] | None = None) -> None:
        """Use exactly these engines, and the understudies while none of them is connected.

        What runs on others is continued on these, or waits for one.
        """
        wanted = {name: (address, True) for name, address in (understudies or {}).items()}
        wanted |= {name: (address, False) for name, address in engines.items()}
        for name, link in list(self._engines.items()):
            if wanted.get(name) != (link.address, link.is_understudy):
                self._leave(link)
        for name, (address, is_understudy) in sorted(wanted.items()):
            if name not in self._engines:
                link = self._engines[name] = EngineLink(name, address, is_understudy)
                link.task = asyncio.create_task(self._keep(link), name=f"engine {name}")
        self._mirror()

    async def move_to(self, engines: dict[str, Address], understudies: dict[str, Address]) -> None:
        """`set_engines`, after those that leave have brought what they computed to one that stays."""
        known = {link.name: link for link in self._engines.values() if link.writer and link.active}
        leaving = [link for name, link in known.items() if engines.get(name, understudies.get(name)) != link.address]
        if leaving and engines:
            stood_by = {link.name: link.address for link in self._engines.values() if link.is_understudy}
            self.set_engines({**engines, **{link.name: link.address for link in leaving}}, stood_by)
            await self._meet([self._engines[name] for name in engines if name in self._engines])
            await asyncio.gather(*(self._hand_over(link, set(known) - set(engines)) for link in leaving))
        self.set_engines(engines, understudies)

    @staticmethod
    async def _meet(links: list[EngineLink]) -> None:
        """Until one of them is connected, if that is soon."""
        waits = [asyncio.ensure_future(link.connected.wait()) for link in links]
        await asyncio.wait(waits, timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _hand_over(self, link: EngineLink, leaving: Collection[str]) -> None:
        """Have an engine bring what it computed of its sequences to another; they go on there meanwhile."""
        targets = [x for x in self._usable() if x is not link and x.name not in leaving and not x.is_understudy]
        if not targets or not link.active:
            return
        target = min(targets, key=lambda x: (len(x.active), x.name))
        link.handed.clear()
        link.send({"op": "hand_over", "ids": list(link.active), "to": target.address})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HANDOVER_S):
                await link.handed.wait()
        for generation in link.active.values():
            generation.warm = target.name

    async def _relieve(self) -> None:
        """An engine is there again: what an understudy has begun goes on on it."""
        for link in [x for x in self._engines.values() if x.is_understudy and x.active]:
            await self._hand_over(link, ())
            if any(not x.is_understudy for x in self._usable()):
                self._recall(link)

    def _mirror(self) -> None:
        """Have the engines show the understudy all that they compute."""
        standby = next((x.address for x in self._engines.values() if x.is_understudy and x.writer), None)
        for link in self._engines.values():
            if not link.is_understudy and link.writer and link.mirrored_to != standby:
                link.mirrored_to = standby
                link.send({"op": "mirror", "to": standby})

    def _usable(self) -> list[EngineLink]:
        connected = [link for link in self._engines.values() if link.writer]
        return [link for link in connected if not link.is_understudy] or connected

    async def close(self) -> None:
        """End everything."""
        links = list(self._engines.values())
        self.set_engines({})
        for generation in self._live():
            self._end(generation, NoCapacity("the model is being taken down"))
        await asyncio.gather(*(link.task for link in links if link.task), return_exceptions=True)

    def _leave(self, link: EngineLink) -> None:
        self._engines.pop(link.name, None)
        self._recall(link)
        if link.task is not None:
            link.task.cancel()

    def _recall(self, link: EngineLink) -> None:
        for key in link.active:
            link.send({"op": "cancel", "id": key})
        self._take_back(link)

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
                    self._welcome(link)
                    await self._listen(link, reader)
                except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                    level = logging.WARNING if link.writer is not None else logging.DEBUG
                    log.log(level, "engine %s is away: %s", link.name, error or type(error).__name__)
                self._disconnect(link)
                await asyncio.sleep(RECONNECT_S)
        finally:
            self._disconnect(link)

    def _welcome(self, link: EngineLink) -> None:
        link.connected.set()
        self._mirror()
        if not link.is_understudy:
            self._relief = asyncio.ensure_future(self._relieve())
        self._pump()

    def _disconnect(self, link: EngineLink) -> None:
        if link.writer is not None:
            link.writer.close()
            link.writer = None
        link.mirrored_to = None
        link.connected.clear()
        link.handed.set()
        self._take_back(link)

    async def _listen(self, link: EngineLink, reader: asyncio.StreamReader) -> None:
        while True:
            alone = all(other is link or other.writer is None for other in self._engines.values())
            async with asyncio.timeout(
                LONG_SILENT_S if alone else SILENT_S
            ):  # not wait_for, which may swallow a cancellation
                frame = await wire.read_frame(reader)
            message = frame.json()
            if "handed" in message:
                link.handed.set()
            for item in message.get("tokens", ()):
                self._token(link, item)
            for key, reason in message.get("faults", ()):
                self._fault(link, key, reason)
            self._pump()

    def _pump(self) -> None:
        """Give waiting sequences to the engines with the fewest."""
        while self.waiting:
            links = [x for x in self._usable() if len(x.active) < self._max_batch]
            if not links:
                return
            generation = self.waiting.pop(0)
            warm = generation.warm
            link = min(links, key=lambda x: (x.name != warm, len(x.active), x.name))
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
            "engines": sum(link.writer is not None and not link.is_understudy for link in self._engines.values()),
            "understudies": sum(link.writer is not None and link.is_understudy for link in self._engines.values()),
            "tokens": self.tokens,
            "replays": self.replays,
        }
