"""A worker's pulse: who may listen, what they hear, and how its end is noticed."""

from __future__ import annotations

import asyncio
import threading

import pytest

from runtime.training import pulse
from runtime.training.generation import Source, Switch, form
from runtime.training.orders import Orders
from runtime.training.pulse import Pulse, listen
from tests.training.undisturbed import slots, tiny_spec


async def heard(source: Pulse, count: int, after: int = 0) -> list[dict]:
    events = []
    async with asyncio.timeout(20):
        async for event in listen("127.0.0.1", source.port, source.secret, after):
            events.append(event)
            if len(events) == count:
                break
    return events


async def test_events_come_in_order_to_whoever_listens_and_again_to_who_comes_late() -> None:
    source = Pulse("127.0.0.1")
    source.tell("first")
    listening = asyncio.create_task(heard(source, 3))
    source.tell("second", loss=1.5)
    source.tell("third")
    assert [(e["n"], e["kind"]) for e in await listening] == [(1, "first"), (2, "second"), (3, "third")]
    assert await heard(source, 1, after=2) == [{"n": 3, "kind": "third"}]
    source.close()


async def test_a_wrong_secret_hears_nothing() -> None:
    source = Pulse("127.0.0.1")
    source.tell("secret")
    with pytest.raises(ConnectionError):
        await anext(listen("127.0.0.1", source.port, "wrong"))
    source.close()


async def test_silence_is_taken_for_death(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(pulse, "SILENT_S", 0.2)
    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionError, match="said nothing"):
            await anext(listen("127.0.0.1", port, "x"))


def switch(number: int) -> Switch:
    generation = form(number, slots(tiny_spec(), ["a", "b"]))
    return Switch(generation, ("a", "b"), ("127.0.0.1", 1), Source("fresh"))


def test_the_newest_order_counts_and_is_taken_once() -> None:
    orders = Orders()
    assert orders.pending == 0
    waiting: list[Switch] = []
    thread = threading.Thread(target=lambda: waiting.append(orders.take(after=0)))
    thread.start()
    orders.give(switch(2))
    thread.join(20)
    assert waiting[0].number == 2
    orders.give(switch(1))  # late
    assert orders.newest.number == orders.pending == 2
    assert not orders.is_over(2)
    orders.give(switch(4))
    assert orders.is_over(2)
    assert not orders.is_cancelled(2)
    orders.cancel(4)
    assert orders.is_cancelled(4)
    assert not orders.is_cancelled(5)
