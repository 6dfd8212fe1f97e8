"""An engine's manners towards gateways: it answers each in its own sequences and survives what it is sent."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from protocol.models import ModelConfig
from runtime.moe.cache import SequenceCache
from runtime.serving import wire
from runtime.serving.engine import Engine
from runtime.serving.engine_server import EngineServer
from runtime.serving.pages import Pages
from runtime.serving.params import SamplingParams
from runtime.serving.sequences import StepScheduler

SECRET = b"s"
VOCABULARY = 50
POISON = 13
SHAPE = ModelConfig(
    vocab_size=VOCABULARY, hidden_size=8, layers=1, heads=1, experts=2, experts_per_token=1, expert_size=8
)


class Counting:
    """Says the number after the last one it was told; breaks on `POISON`."""

    def extend(self, parts: list[torch.Tensor], caches: list[Any], executor: Any) -> torch.Tensor:
        last = [int(part[-1]) for part in parts]
        if POISON in last:
            raise ArithmeticError("poisoned")
        return torch.nn.functional.one_hot(torch.tensor(last) + 1, VOCABULARY).float()


class Gateway:
    """A gateway's side of one connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = wire.connect(address, SECRET)
        self.sock.settimeout(10)
        self._reader = wire.FrameReader()

    def add(self, id: str, prompt: list[int], count: int = 3, emitted: tuple[int, ...] = (), **fields: Any) -> None:
        params = SamplingParams(count, **fields).to_json()
        self.say({"op": "add", "id": id, "prompt": prompt, "emitted": emitted, "params": params})

    def say(self, message: dict[str, Any]) -> None:
        self.sock.sendall(wire.encode_json(message))

    def hear(self) -> dict[str, Any]:
        """The next message that is not a beat."""
        while True:
            frame = self._reader.read(self.sock)
            assert frame is not None
            if "beat" not in frame.json():
                return frame.json()

    def tokens(self, count: int) -> list[tuple[str, int, int, str]]:
        heard: list[tuple[str, int, int, str]] = []
        while len(heard) < count:
            heard += [tuple(row[:4]) for row in self.hear()["tokens"]]
        return heard


@pytest.fixture
def server() -> Iterator[EngineServer]:
    pages = Pages(lambda capacity: SequenceCache(SHAPE, capacity), 1000)
    scheduler = StepScheduler(4, 64, 1000, pages.open)
    server = EngineServer(Engine(Counting(), None, scheduler, pages), VOCABULARY, SECRET)  # type: ignore[arg-type]
    server.start()
    yield server
    server.close()


def test_tokens_come_with_their_positions_and_an_end(server: EngineServer) -> None:
    gateway = Gateway(server.address)
    gateway.add("a", [1, 2], 3)
    assert gateway.tokens(3) == [("a", 0, 3, ""), ("a", 1, 4, ""), ("a", 2, 5, "length")]
    gateway.add("b", [1, 2], 9, stop_ids=(4,))
    assert gateway.tokens(2) == [("b", 0, 3, ""), ("b", 1, 4, "stop")]


def test_a_replay_goes_on_at_the_next_position(server: EngineServer) -> None:
    gateway = Gateway(server.address)
    gateway.add("a", [1, 2], 4, emitted=(3, 4))
    assert gateway.tokens(2) == [("a", 2, 5, ""), ("a", 3, 6, "length")]


def test_two_gateways_hear_only_of_their_own(server: EngineServer) -> None:
    one, two = Gateway(server.address), Gateway(server.address)
    one.add("same", [1], 2)
    two.add("same", [20], 2)
    assert [row[2] for row in one.tokens(2)] == [2, 3]
    assert [row[2] for row in two.tokens(2)] == [21, 22]


def test_a_request_that_breaks_a_step_is_handed_back_and_others_are_served(server: EngineServer) -> None:
    gateway = Gateway(server.address)
    gateway.add("bad", [POISON])
    ((id, reason),) = gateway.hear()["faults"]
    assert id == "bad"
    assert "poisoned" in reason
    gateway.add("good", [1], 1)
    assert gateway.tokens(1) == [("good", 0, 2, "length")]


@pytest.mark.parametrize(
    "message",
    [
        {"op": "add", "id": "x", "prompt": [VOCABULARY], "emitted": [], "params": {"max_tokens": 1}},
        {"op": "add", "id": "x", "prompt": [], "emitted": [], "params": {"max_tokens": 1}},
        {"op": "add", "id": "x", "prompt": [1], "emitted": [], "params": {"max_tokens": 0}},
        {"op": "add", "id": "x", "prompt": [1], "emitted": [], "params": {"colour": "red"}},
        {"op": "add", "id": "x"},
    ],
)
def test_what_is_no_request_is_refused_by_name(server: EngineServer, message: dict[str, Any]) -> None:
    gateway = Gateway(server.address)
    gateway.say(message)
    assert gateway.hear()["faults"][0][0] == "x"
    gateway.add("good", [1], 1)
    assert gateway.tokens(1) == [("good", 0, 2, "length")]


def test_a_gateway_that_hangs_up_takes_its_sequences_along(server: EngineServer) -> None:
    gone, other = Gateway(server.address), Gateway(server.address)
    for number in range(4):
        gone.add(str(number), [1], 40)
    gone.sock.close()
    other.add("a", [1], 5)
    assert [row[1] for row in other.tokens(5)] == [0, 1, 2, 3, 4]


def test_strangers_are_hung_up_on(server: EngineServer) -> None:
    with socket.create_connection(server.address) as stranger:
        stranger.sendall(b"POST / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while stranger.recv(100):
                pass
    with pytest.raises(ConnectionError):
        wire.connect(server.address, b"wrong")
    gateway = Gateway(server.address)
    gateway.add("good", [1], 1)
    assert gateway.tokens(1) == [("good", 0, 2, "length")]
