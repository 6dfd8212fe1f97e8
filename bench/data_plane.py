"""One hop between an engine and a shard: what carries it, beside other ways to carry the same bytes.

    python -m bench.data_plane [--tokens 64] [--width 576] [--rounds 2000] [--without-ray] [--json FILE]

A batch of fp32 values goes to another process of this machine, which sends as many back. Ours is the whole hop as
an engine sees it: pairs sorted, framed, sent, received by a real shard whose experts change nothing, answered, and put
back in order. The others carry the same bytes and do nothing else. Times are medians of single round trips.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import secrets
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

from bench.report import Row, argument_parser, publish, row
from runtime.serving.dataplane import ExpertPlane
from runtime.serving.routing import table
from runtime.serving.shard import ShardServer

SECRET = b"bench"
WARM_UP = 50
GOAL = 3.0
"""Ours may take so many times as long as a raw TCP round trip."""

Trip = Callable[[], object]
"""One round trip."""


class Unchanged:
    """Experts that give back what they get: what is left is the hop."""

    def load(self, experts: object) -> int:
        return 0

    def drop(self, experts: object) -> None: ...

    def loaded(self) -> frozenset[tuple[int, int]]:
        return frozenset({(0, 0)})

    def run(self, layer: int, x_PD: torch.Tensor, experts: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        return x_PD


def median_s(trip: Trip, rounds: int) -> float:
    """The median time of one."""
    took = []
    for number in range(WARM_UP + rounds):
        start_s = time.perf_counter()
        trip()
        if number >= WARM_UP:
            took.append(time.perf_counter() - start_s)
    return statistics.median(took)


@contextlib.contextmanager
def other_process(work: Callable[..., None], *given: object) -> Iterator[Connection]:
    """`work(pipe, *given)` in a process of its own, which ends with the block."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_alone, args=(work, theirs, *given), daemon=True)
    process.start()
    try:
        yield mine
    finally:
        process.kill()
        process.join()


def _alone(work: Callable[..., None], *given: object) -> None:
    torch.set_num_threads(1)
    work(*given)


# --- the ways --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def raw_tcp(x_TD: torch.Tensor) -> Iterator[Trip]:
    """As fast as a socket is: the bytes there and back."""
    there = memoryview(x_TD.numpy()).cast("B")
    back = memoryview(bytearray(len(there)))
    with other_process(_echo, len(there)) as pipe, socket.create_connection(pipe.recv()) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def trip() -> None:
            sock.sendall(there)
            _receive(sock, back)

        yield trip


def _receive(sock: socket.socket, into: memoryview) -> None:
    while into:
        count = sock.recv_into(into)
        if not count:
            raise ConnectionResetError
        into = into[count:]


def _echo(pipe: Connection, length: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname())
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = memoryview(bytearray(length))
        with contextlib.suppress(ConnectionError):
            while True:
                _receive(sock, buffer)
                sock.sendall(buffer)


@contextlib.contextmanager
def ours(x_TD: torch.Tensor) -> Iterator[Trip]:
    """The hop that engines make."""
    expert_TK = torch.zeros(len(x_TD), 1, dtype=torch.int64)
    with other_process(_shard) as pipe:
        plane = ExpertPlane(SECRET)
        plane.set_routing(table(1, {"shard": (pipe.recv(), [(0, 0)])}))
        assert torch.equal(plane.run(0, x_TD, expert_TK)[:, 0], x_TD)
        yield functools.partial(plane.run, 0, x_TD, expert_TK)
        plane.close()


def _shard(pipe: Connection) -> None:
    server = ShardServer(Unchanged(), SECRET)
    server.start()
    pipe.send(server.address)
    pipe.recv()


@contextlib.contextmanager
def gloo(x_TD: torch.Tensor) -> Iterator[Trip]:
    """torch.distributed, point to point."""
    store = dist.TCPStore("127.0.0.1", 0, 2, True, timedelta(seconds=60), wait_for_workers=False)
    with other_process(_gloo_echo, store.port, tuple(x_TD.shape)):
        dist.init_process_group("gloo", store=store, rank=0, world_size=2)
        back = torch.empty_like(x_TD)

        def trip() -> None:
            dist.send(x_TD, 1)
            dist.recv(back, 1)

        yield trip
        dist.destroy_process_group()


def _gloo_echo(pipe: Connection, port: int, shape: tuple[int, ...]) -> None:
    store = dist.TCPStore("127.0.0.1", port, 2, False, timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=1, world_size=2)
    buffer = torch.empty(shape)
    with contextlib.suppress(RuntimeError):
        while True:
            dist.recv(buffer, 0)
            dist.send(buffer, 0)


@contextlib.contextmanager
def ray_ways(x_TD: torch.Tensor) -> Iterator[dict[str, Trip]]:
    """A call of an actor, and the same as a compiled graph."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    import ray
    from ray.dag import InputNode

    @ray.remote(num_cpus=1)
    class Echo:
        def echo(self, x_TD: torch.Tensor) -> torch.Tensor:
            return x_TD

    with tempfile.TemporaryDirectory(prefix="fw-ray-") as folder:
        options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100_000_000}
        ray.init(address="local", num_cpus=2, _temp_dir=folder, **options)
        called, compiled = Echo.remote(), Echo.remote()
        with InputNode() as given:
            graph = compiled.echo.bind(given).experimental_compile()
        yield {
            "a Ray actor call": lambda: ray.get(called.echo.remote(x_TD)),
            "a Ray compiled graph": lambda: ray.get(graph.execute(x_TD)),
        }
        graph.teardown()
        ray.shutdown()


def measured(x_TD: torch.Tensor, rounds: int, with_ray: bool) -> dict[str, float]:
    """Seconds of a round trip each way, ours under "ours"."""
    with raw_tcp(x_TD) as raw, ours(x_TD) as own:
        firsts = [median_s(raw, rounds), median_s(own, rounds), median_s(raw, rounds), median_s(own, rounds)]
    seconds = {"a raw TCP round trip": min(firsts[0::2]), "ours": min(firsts[1::2])}
    with gloo(x_TD) as trip:
        seconds["torch.distributed, gloo"] = median_s(trip, rounds)
    if with_ray:
        with ray_ways(x_TD) as ways:
            seconds |= {name: median_s(trip, rounds // 4) for name, trip in ways.items()}
    return seconds


def rows_of(seconds: dict[str, float], tokens: int) -> list[Row]:
    """Ours beside each of the others."""
    mine = seconds.pop("ours")
    figure = f"a hop's round trip, {tokens} tokens"
    raw, *others = seconds.items()
    return [
        row(figure, "us", 1e6 * mine, raw[0], 1e6 * raw[1], at_most=GOAL, of="ratio"),
        *(row(figure, "us", 1e6 * mine, name, 1e6 * took) for name, took in others),
    ]


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--without-ray", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x_TD = torch.randn(options.tokens, options.width)
    publish(
        "data_plane", rows_of(measured(x_TD, options.rounds, not options.without_ray), options.tokens), options.json
    )


if __name__ == "__main__":
    main()
