"""Replay: whatever engines do, a client's tokens come once, in order, and all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from runtime.serving import wire
from runtime.serving.dispatch import Dispatcher, GenerationFailed, NoCapacity, QueueFull
from runtime.serving.params import SamplingParams

SECRET = b"s"
PROMPT = (7, 8, 9)


def token_at(position: int) -> int:
    """What every engine would say here."""
    return 100 + position


class ScriptedEngine:
    """An engine whose manners the test decides."""

    def __init__(self) -> None:
        self.added: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.heard: list[dict[str, Any]] = []
        self.arrived = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[:2]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.encode(wire.Kind.CHALLENGE, 0, b"c"))
        await wire.read_frame(reader)
        writer.write(wire.encode(wire.Kind.WELCOME, 0, b""))
        self._writers.append(writer)
        try:
            while True:
                message = (await wire.read_frame(reader)).json()
                if message["op"] == "add":
                    self.added.append(message)
                elif message["op"] == "cancel":
                    self.cancelled.append(message["id"])
                else:
                    self.heard.append(message)
                self.arrived.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    async def next_add(self, count: int) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while len(self.added) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.added[count - 1]

    def say(self, *items: tuple[str, int, int, str]) -> None:
        rows = [[*item, None, []] for item in items]
        self._writers[-1].write(wire.encode_json({"tokens": rows}))

    def handed(self) -> None:
        self._writers[-1].write(wire.encode_json({"handed": 1}))

    async def next_order(self, count: int) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while len(self.heard) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.heard[count - 1]

    def fault(self, key: str) -> None:
        self._writers[-1].write(wire.encode_json({"faults": [[key, "it broke"]]}))

    async def die(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()


def _dispatcher(max_batch: int = 4, queue_limit: int = 2) -> Dispatcher:
    return Dispatcher(SECRET, max_batch, queue_limit)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is watched are plain fields
            await asyncio.sleep(0.01)


async def test_tokens_survive_the_loss_of_an_engine() -> None:
    dispatcher, first, second = _dispatcher(), ScriptedEngine(), ScriptedEngine()
    dispatcher.set_engines({"a": await first.start()})
    generation = dispatcher.submit(PROMPT, SamplingParams(6))
    key = (await first.next_add(1))["id"]
    first.say((key, 0, token_at(0), ""), (key, 1, token_at(1), ""))
    await _until(lambda: len(generation.emitted) == 2)
    await first.die()
    await _until(lambda: len(dispatcher.waiting) == 1)
    dispatcher.set_engines({"b": await second.start()})
    again = await second.next_add(1)
    assert again["prompt"] == list(PROMPT)
    assert again["emitted"] == [token_at(0), token_at(1)]
    second.say(*((again["id"], n, token_at(n), "length" if n == 5 else "") for n in range(2, 6)))
    await _until(lambda: generation.finished)
    assert generation.emitted == [token_at(n) for n in range(6)]
    assert dispatcher.stall(60)[0] > 0
    await dispatcher.close()


async def test_tokens_that_come_twice_late_or_from_nowhere_do_not_count() -> None:
    dispatcher, old, new = _dispatcher(), ScriptedEngine(), ScriptedEngine()
    dispatcher.set_engines({"a": await old.start()})
    generation = dispatcher.submit(PROMPT, SamplingParams(3))
    key = (await old.next_add(1))["id"]
    old.say((key, 0, 1, ""), (key, 0, 1, ""), (key, 2, 66, ""), ("99.1", 0, 66, ""))
    await _until(lambda: len(generation.emitted) == 1)
    address = await new.start()
    dispatcher.set_engines({"b": address})
    again = await new.next_add(1)
    assert again["id"] != key
    old.say((key, 1, 66, ""))
    new.say((key, 1, 66, ""), (again["id"], 1, 2, ""), (again["id"], 2, 3, "length"))
    await _until(lambda: generation.finished)
    assert generation.emitted == [1, 2, 3]
    assert old.cancelled == [key]
    await dispatcher.close()
    await old.die()


async def test_the_queue_is_bounded_and_served_in_order() -> None:
    dispatcher, engine = _dispatcher(max_batch=1, queue_limit=2), ScriptedEngine()
    dispatcher.set_engines({"a": await engine.start()})
    await _until(lambda: dispatcher.counts()["engines"] == 1)
    generations = []
    for _ in range(3):
        dispatcher.check_room(1)
        generations.append(dispatcher.submit(PROMPT, SamplingParams(1)))
    with pytest.raises(QueueFull):
        dispatcher.check_room(1)
    for count, generation in enumerate(generations, 1):
        key = (await engine.next_add(count))["id"]
        assert key.startswith(f"{generation.id}.")
        engine.say((key, 0, 5, "stop"))
        await _until(lambda generation=generation: generation.finished)  # type: ignore[misc]
    dispatcher.check_room(3)
    await dispatcher.close()


async def test_an_engine_that_leaves_hands_over_before_its_sequences_move() -> None:
    dispatcher, old, new = _dispatcher(), ScriptedEngine(), ScriptedEngine()
    dispatcher.set_engines({"a": await old.start()})
    generation = dispatcher.submit(PROMPT, SamplingParams(4))
    key = (await old.next_add(1))["id"]
    old.say((key, 0, token_at(0), ""))
    address = await new.start()
    moving = asyncio.ensure_future(dispatcher.move_to({"b": address}, {}))
    order = await old.next_order(1)
    assert order == {"op": "hand_over", "ids": [key], "to": list(address)}
    old.say((key, 1, token_at(1), ""))  # it goes on meanwhile
    await _until(lambda: len(generation.emitted) == 2)
    assert not new.added
    old.handed()
    await moving
    assert (await new.next_add(1))["emitted"] == [token_at(0), token_at(1)]
    await _until(lambda: old.cancelled == [key])
    await dispatcher.close()


async def test_an_engine_that_does_not_hand_over_is_left_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.serving.dispatch.HANDOVER_S", 0.05)
    dispatcher, old, new = _dispatcher(), ScriptedEngine(), ScriptedEngine()
    dispatcher.set_engines({"a": await old.start()})
    dispatcher.submit(PROMPT, SamplingParams(4))
    await old.next_add(1)
    await dispatcher.move_to({"b": await new.start()}, {})
    await new.next_add(1)
    await dispatcher.close()


async def test_an_understudy_goes_on_while_there_is_no_engine_and_hands_back() -> None:
    dispatcher, engine, standby, second = _dispatcher(), ScriptedEngine(), ScriptedEngine(), ScriptedEngine()
    at = await standby.start()
    dispatcher.set_engines({"a": await engine.start()}, {"s": at})
    await _until(lambda: dispatcher.counts()["understudies"] == dispatcher.counts()["engines"] == 1)
    generation = dispatcher.submit(PROMPT, SamplingParams(4))
    key = (await engine.next_add(1))["id"]
    assert await engine.next_order(1) == {"op": "mirror", "to": list(at)}
    assert not standby.added
    engine.say((key, 0, token_at(0), ""))
    await _until(lambda: len(generation.emitted) == 1)
    await engine.die()
    again = await standby.next_add(1)
    assert again["emitted"] == [token_at(0)]
    dispatcher.set_engines({"b": await second.start()}, {"s": at})
    order = await standby.next_order(1)
    assert (order["op"], order["ids"]) == ("hand_over", [again["id"]])
    standby.say((again["id"], 1, token_at(1), ""))
    await _until(lambda: len(generation.emitted) == 2)
    standby.handed()
    last = await second.next_add(1)
    second.say((last["id"], 2, token_at(2), ""), (last["id"], 3, token_at(3), "length"))
    await _until(lambda: generation.finished)
    assert generation.emitted == [token_at(n) for n in range(4)]
    await dispatcher.close()


async def test_smaller_priorities_go_first_and_those_under_way_before_later_ones() -> None:
    dispatcher, engine, other = _dispatcher(max_batch=1, queue_limit=9), ScriptedEngine(), ScriptedEngine()
    dispatcher.set_engines({"a": await engine.start()})
    running = dispatcher.submit(PROMPT, SamplingParams(2))
    await engine.next_add(1)
    patient, plain, urgent = (dispatcher.submit(PROMPT, SamplingParams(1), priority) for priority in (5, 0, -1))
    assert dispatcher.waiting == [urgent, plain, patient]
    await engine.die()
    await _until(lambda: len(dispatcher.waiting) == 4)
    assert dispatcher.waiting == [urgent, running, plain, patient]
    dispatcher.set_engines({"b": await other.start()})
    assert (await other.next_add(1))["id"] == f"{urgent.id}.1"
    await dispatcher.close()


async def test_a_request_on_which_engines_fail_is_given_back_not_passed_round_for_ever() -> None:
    dispatcher, engine = _dispatcher(), ScriptedEngine()
    dispatcher.set_engines({"a": await engine.start()})
    generation = dispatcher.submit(PROMPT, SamplingParams(1))
    for count in (1, 2, 3):
        engine.fault((await engine.next_add(count))["id"])
    step = await asyncio.wait_for(generation.steps.get(), 10)
    assert isinstance(step.error, GenerationFailed)
    assert dispatcher.counts()["running"] == 0
    await dispatcher.close()


async def test_cancelling_tells_the_engine_and_makes_room() -> None:
    dispatcher, engine = _dispatcher(max_batch=1), ScriptedEngine()
    dispatcher.set_engines({"a": await engine.start()})
    first = dispatcher.submit(PROMPT, SamplingParams(9))
    second = dispatcher.submit(PROMPT, SamplingParams(9))
    await engine.next_add(1)
    dispatcher.cancel(first)
    assert (await engine.next_add(2))["id"] == f"{second.id}.1"
    assert engine.cancelled == [f"{first.id}.1"]
    dispatcher.cancel(second)
    assert dispatcher.counts()["running"] == 0
    await dispatcher.close()


async def test_requests_wait_for_an_engine_but_not_for_ever_without_a_first_token() -> None:
    dispatcher = _dispatcher()
    fresh, started = dispatcher.submit(PROMPT, SamplingParams(9)), dispatcher.submit(PROMPT, SamplingParams(9))
    started.emitted.append(1)
    dispatcher.expire(60)
    assert fresh.steps.empty()
    await asyncio.sleep(0.01)
    dispatcher.expire(0.005)
    assert isinstance(fresh.steps.get_nowait().error, NoCapacity)
    assert started.steps.empty()
    assert list(dispatcher.waiting) == [started]
