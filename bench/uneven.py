"""Shares by measured speed: tokens a second of two workers, one of them at half speed.

    python -m bench.uneven [--rounds N] [--json FILE]

Two processes with a thread each; one is stopped for every other ten milliseconds. Grains and experts are shared evenly,
then as the first steps' measured speeds say, then in fixed ways near a third; the fastest of those is the best split.
The ways alternate in every round. The best fixed way is chosen by every other round and measured by the rest, as all
are: the best of five in the very rounds that chose it would look faster than it is. Medians count. On a machine that
others use, a process that is stopped half of the time runs at more than half the speed of the other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.report import argument_parser, publish, row
from bench.train import Sizes, generation_of
from runtime.training.generation import Generation, form, with_experts
from runtime.training.group import Group, open_store
from runtime.training.shares import SEEN, WINDOW, Speeds, spare_stragglers
from runtime.training.state import TrainState
from runtime.training.text import Batches, load_corpus
from runtime.training.trainer import Signals, Trainer

SIZES = Sizes(12, layers=2, batch=16, length=64)
STEPS = WINDOW - 2
"""With the one that warms up, fewer than a window: shares stay as they begin."""


@dataclass(frozen=True)
class Way:
    """How work is shared: the slow worker's grains of 16 and experts of 12 a layer; None: by measured speed."""

    name: str
    grains: int | None = None
    experts: int | None = None


EVEN, MEASURED = Way("even", 8, 6), Way("measured")
FIXED = [
    Way(f"{grains} grains, {experts} experts", grains, experts)
    for grains in (4, 5, 6)
    for experts in (3, 4, 5)
    if grains == 5 or experts == 4
]
WAYS = [EVEN, MEASURED, *FIXED]


class Member:
    """One of the two workers."""

    def __init__(self, folder: Path, port: int, rank: int) -> None:
        self._spec = SIZES.spec(2)
        part = self._spec.train
        assert part is not None
        self._part = part
        corpus = load_corpus(part.data, part.model.vocab_size, part.sequence_length, folder)
        self._batches = Batches(corpus, part.seed, part.sequence_length)
        self._state = TrainState(part.model)
        device = torch.device("cpu")
        self._group = Group.connect(("127.0.0.1", port), "bench", rank, 2, "127.0.0.1", device, lambda: False)

    def rate(self, way: Way) -> float:
        """Tokens a second, shared in that way."""
        trainer = self._trainer(self._measured() if way.grains is None else _fixed(way))
        trainer.step(Signals())
        self._group.barrier()
        started = time.perf_counter()
        for _ in range(STEPS):
            trainer.step(Signals())
        self._group.barrier()
        return SIZES.tokens * STEPS / (time.perf_counter() - started)

    def _measured(self) -> Generation:
        """As a job goes on after its first windows: the controller hears of speeds, experts move."""
        even, heard = generation_of(self._spec, 2), Speeds()
        trainer = self._trainer(even)
        for _ in range(SEEN * WINDOW):
            outcome = trainer.step(Signals())
            if outcome.speeds is not None:
                heard.hear(dict(zip(even.workers, outcome.speeds, strict=True)))
        slots = [member.slot for member in even.members]
        items = [key for slot in slots for key in slot.experts]
        if self._group.rank == 0:
            print(f"speeds {heard.usual}, stragglers {heard.stragglers}", flush=True)
        return form(2, spare_stragglers(slots, items, heard.stragglers), heard.usual)

    def _trainer(self, generation: Generation) -> Trainer:
        self._state.fresh(generation.members[self._group.rank].slot.experts, self._part.seed)
        return Trainer(self._spec, self._state, self._batches, self._group, generation)


def _fixed(way: Way) -> Generation:
    assert way.grains is not None
    assert way.experts is not None
    even = generation_of(SIZES.spec(2), 2)
    items = sorted(key for member in even.members for key in member.slot.experts)
    first = SIZES.experts - way.experts
    experts = [k for k in items if k[1] < first], [k for k in items if k[1] >= first]
    slots = [with_experts(member.slot, mine) for member, mine in zip(even.members, experts, strict=True)]
    # speeds that give exactly these grains: a little more than half a grain is always nearer
    return form(1, slots, {"w0": 16 - way.grains + 0.5, "w1": way.grains + 0.5})


def _member(folder: str, port: int, rank: int, rounds: int, out: Any) -> None:
    torch.set_num_threads(1)
    member = Member(Path(folder), port, rank)
    out.put((rank, {}))
    for _ in range(rounds):
        out.put((rank, {way.name: member.rate(way) for way in WAYS}))


@contextlib.contextmanager
def slowed(pid: int, stopped_s: float = 0.01, runs_s: float = 0.01) -> Iterator[None]:
    """That process is stopped and runs in turns; in the end it runs."""
    is_over = threading.Event()

    def stop_and_go() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not is_over.wait(runs_s):
                os.kill(pid, signal.SIGSTOP)
                is_over.wait(stopped_s)
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def rates(rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each way, by round."""
    spawn = multiprocessing.get_context("spawn")
    store, out = open_store("127.0.0.1"), spawn.Queue()
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as folder:
        members = [
            spawn.Process(target=_member, args=(folder, store.port, rank, rounds, out), daemon=True)
            for rank in range(2)
        ]
        for member in members:
            member.start()
        for _ in members:  # they are there
            out.get(timeout=120)
        assert members[1].pid is not None
        with slowed(members[1].pid):
            told = [out.get(timeout=600) for _ in range(2 * rounds)]
        for member in members:
            member.join()
    of_first: Sequence[dict[str, float]] = [found for rank, found in told if rank == 0]
    return {way.name: [found[way.name] for found in of_first] for way in WAYS}


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="at least 2")
    options = parser.parse_args()
    by_round = rates(max(options.rounds, 2))
    choosing = {name: statistics.median(of[1::2]) for name, of in by_round.items()}
    found = {name: statistics.median(of[::2]) for name, of in by_round.items()}
    best = max(FIXED, key=lambda way: choosing[way.name])
    named = f"best fixed split ({best.name} on the slow one)"
    rows = [
        row(
            "one of two workers at half speed",
            "tokens/s",
            found[MEASURED.name],
            named,
            found[best.name],
            at_least=0.9,
            of="ratio",
        ),
        row("one of two workers at half speed, even shares", "tokens/s", found[EVEN.name], named, found[best.name]),
    ]
    publish("uneven", rows, options.json)


if __name__ == "__main__":
    main()
