"""Expert calls over sockets: right whatever shards do, and never stuck while a copy lives."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

from runtime.moe.experts import ExpertWeights, LocalExperts, run_segments
from runtime.serving import wire
from runtime.serving.dataplane import ExpertPlane, PlaneClosed
from runtime.serving.engine import RemoteExperts
from runtime.serving.layer_work import LayerWork
from runtime.serving.routing import ExpertId, Routing, table
from runtime.serving.shard import ShardServer

SECRET = b"a job's secret"
LAYERS, EXPERTS, WIDTH = 2, 6, 16
ALL = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]


def _expert(key: ExpertId) -> ExpertWeights:
    generator = torch.Generator().manual_seed(100 * key[0] + key[1])
    return ExpertWeights(torch.randn(24, WIDTH, generator=generator), torch.randn(WIDTH, 12, generator=generator))


class Bank:
    """Some experts; can be told to dawdle."""

    weights: ClassVar = {key: _expert(key) for key in ALL}

    def __init__(self, experts: list[ExpertId]) -> None:
        self.held = {key: self.weights[key] for key in experts}
        self.go = threading.Event()
        self.go.set()

    def run(self, layer: int, x_PD: torch.Tensor, experts: list[int], counts: list[int]) -> torch.Tensor:
        weights = [self.held[layer, expert] for expert in experts]
        self.go.wait(30)
        return run_segments(x_PD, counts, weights)


class Shards:
    """Three shards, two copies of every expert, and a plane that knows them."""

    def __init__(self) -> None:
        self.banks = {f"s{i}": Bank([key for key in ALL if key[1] % 3 != i]) for i in range(3)}
        self.servers = {name: ShardServer(bank, SECRET) for name, bank in self.banks.items()}  # type: ignore[arg-type]
        for server in self.servers.values():
            server.start()
        self.plane = ExpertPlane(SECRET)
        self.plane.set_routing(self.routing(1))

    def routing(self, epoch: int, *without: str) -> Routing:
        shards = {n: (s.address, self.banks[n].held) for n, s in self.servers.items() if n not in without}
        return table(epoch, shards)

    def close(self) -> None:
        for bank in self.banks.values():
            bank.go.set()
        self.plane.close()
        for server in self.servers.values():
            server.close()


@pytest.fixture
def shards() -> Iterator[Shards]:
    shards = Shards()
    yield shards
    shards.close()


def _batch(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids_TK = torch.stack([torch.randperm(EXPERTS, generator=generator)[:2] for _ in range(tokens)])
    return torch.randn(tokens, WIDTH, generator=generator), ids_TK, torch.rand(tokens, 2, generator=generator)


def _check(plane: ExpertPlane, tokens: int = 9, seed: int = 0) -> None:
    x_TD, ids_TK, weights_TK = _batch(tokens, seed)
    for layer in range(LAYERS):
        here = LocalExperts(Bank.weights, EXPERTS)(layer, x_TD, ids_TK, weights_TK)
        there = RemoteExperts(plane, LAYERS, EXPERTS)(layer, x_TD, ids_TK, weights_TK)
        assert torch.equal(here, there)


@pytest.mark.parametrize("tokens", [1, 2, 64, 300])
def test_remote_experts_equal_local_ones_to_the_last_bit(shards: Shards, tokens: int) -> None:
    _check(shards.plane, tokens)


def test_tokens_of_each_expert_are_counted_once(shards: Shards) -> None:
    experts = RemoteExperts(shards.plane, LAYERS, EXPERTS)
    x_TD, ids_TK, weights_TK = _batch(9)
    for _ in range(2):
        experts(1, x_TD, ids_TK, weights_TK)
    counts = torch.bincount(ids_TK.flatten(), minlength=EXPERTS)
    assert experts.take_tokens() == [0] * EXPERTS + (2 * counts).tolist() + [0] * EXPERTS * (LAYERS - 2)
    assert not any(experts.take_tokens())


def test_a_shard_that_dies_is_replaced_by_the_other_copies(shards: Shards) -> None:
    _check(shards.plane)
    shards.servers["s1"].close()
    for seed in range(3):
        _check(shards.plane, seed=seed)
    assert shards.plane.live_shards() == ["s0", "s2"]
    assert shards.plane.failovers


def test_a_shard_that_dies_in_the_middle_of_a_call_is_replaced(shards: Shards) -> None:
    shards.banks["s0"].go.clear()
    done = threading.Thread(target=_check, args=(shards.plane,))
    done.start()
    shards.servers["s0"].close()
    done.join(10)
    assert not done.is_alive()


def test_a_slow_shard_is_overtaken_and_asked_again_once_it_is_awake(shards: Shards) -> None:
    shards.banks["s2"].go.clear()
    for seed in range(4):
        _check(shards.plane, seed=seed)
    assert "s2" in shards.plane.live_shards()
    assert shards.plane.hedges
    assert shards.plane.failovers == 0  # to be slow is not to be lost
    shards.banks["s2"].go.set()
    before = shards.servers["s2"].calls
    deadline_s = time.monotonic() + 20
    while shards.servers["s2"].calls <= before + 2 and time.monotonic() < deadline_s:
        _check(shards.plane, 64)
    assert shards.servers["s2"].calls > before + 2


def test_one_slow_moment_brings_no_flood_of_calls_and_no_longer_waits_for_a_second_copy(shards: Shards) -> None:
    _check(shards.plane)
    patience_s = shards.plane.patience_s(1)
    for bank in shards.banks.values():
        bank.go.clear()
    wake = threading.Timer(0.5, lambda: [bank.go.set() for bank in shards.banks.values()])
    wake.start()
    _check(shards.plane)
    wake.join()
    assert shards.plane.hedges <= LAYERS * len(shards.banks)  # each call once
    assert shards.plane.patience_s(1) < 1.5 * patience_s


def test_of_an_answer_that_another_copy_gave_in_part_only_the_rest_is_taken() -> None:
    x_TD, ids_TK, _ = _batch(9)
    rows = dict(enumerate(torch.bincount(ids_TK.flatten()).tolist()))
    work = LayerWork.of(0, x_TD, ids_TK.numpy(), rows, [3, 0, 5, 1, 2, 4])
    work.make_room()
    first, whole = work.ask([1, 2]), work.ask([0, 1, 2, 3, 4, 5])
    work.fill(first.experts, first.rows())
    work.fill(whole.experts, -whole.rows())
    sign_NK = torch.where((ids_TK == 1) | (ids_TK == 2), 1.0, -1.0)
    assert torch.equal(work.finish(), x_TD.unsqueeze(1) * sign_NK.unsqueeze(2))
    assert not work.missing
    work.fill(first.experts, -first.rows())
    assert torch.equal(work.finish(), x_TD.unsqueeze(1) * sign_NK.unsqueeze(2))


def test_an_expert_without_a_copy_waits_for_a_table_that_has_one(shards: Shards) -> None:
    shards.plane.set_routing(shards.routing(2, "s0", "s1"))
    done = threading.Thread(target=_check, args=(shards.plane,))
    done.start()
    deadline_s = time.monotonic() + 10
    while not shards.plane.orphans and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert shards.plane.orphans
    assert done.is_alive()
    shards.plane.set_routing(shards.routing(3))
    done.join(10)
    assert not done.is_alive()


def test_a_table_that_is_not_newer_has_no_effect(shards: Shards) -> None:
    assert shards.plane.set_routing(shards.routing(5, "s0"))
    assert not shards.plane.set_routing(shards.routing(5))
    assert not shards.plane.set_routing(shards.routing(4))
    assert shards.plane.live_shards() == ["s1", "s2"]
    assert shards.plane.epoch == 5


def test_tables_change_under_load_without_a_wrong_answer(shards: Shards) -> None:
    stop = threading.Event()
    faults: list[BaseException] = []

    def work() -> None:
        seed = 0
        try:
            while not stop.is_set():
                seed += 1
                _check(shards.plane, 8, seed)
        except BaseException as error:
            faults.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    for epoch in range(2, 40):
        assert shards.plane.set_routing(shards.routing(epoch, f"s{epoch % 3}"))
    stop.set()
    worker.join(20)
    assert not faults
    assert shards.plane.failovers == 0


def test_a_shard_that_lacks_an_expert_it_was_said_to_have_is_routed_around(shards: Shards) -> None:
    for key in list(shards.banks["s0"].held):
        del shards.banks["s0"].held[key]
    _check(shards.plane, 64)


def test_a_shard_that_comes_back_is_used_again(shards: Shards) -> None:
    port = shards.servers["s0"].address[1]
    shards.servers["s0"].close()
    _check(shards.plane)
    shards.servers["s0"] = ShardServer(shards.banks["s0"], SECRET, port=port)  # type: ignore[arg-type]
    shards.servers["s0"].start()
    deadline_s = time.monotonic() + 10
    while "s0" not in shards.plane.live_shards() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert "s0" in shards.plane.live_shards()
    _check(shards.plane)


def test_closing_ends_a_call_that_waits(shards: Shards) -> None:
    shards.plane.set_routing(Routing(2))
    ended: list[type[BaseException]] = []

    def call() -> None:
        try:
            _check(shards.plane)
        except PlaneClosed as error:
            ended.append(type(error))

    waiting = threading.Thread(target=call)
    waiting.start()
    shards.plane.close()
    waiting.join(10)
    assert ended == [PlaneClosed]


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\nHost: shard\r\n\r\n", b"\x00" * 64, b"FW"])
def test_strangers_do_not_disturb_a_shard(shards: Shards, noise: bytes) -> None:
    with socket.create_connection(shards.servers["s0"].address) as stranger:
        stranger.sendall(noise)
        with contextlib.suppress(OSError):  # the shard may have hung up already
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(1000):
                pass
    _check(shards.plane)


def test_a_guest_with_the_secret_who_sends_nonsense_is_hung_up_on(shards: Shards) -> None:
    guest = wire.connect(shards.servers["s0"].address, SECRET)
    guest.sendall(wire.encode(wire.Kind.CALL, 1, b"nonsense"))
    with guest:
        assert guest.recv(100) == b""
    _check(shards.plane)
