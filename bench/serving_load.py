"""Clients, an owner and chance against one served model: every request is answered once and rightly, or refused.

    python -m bench.serving_load [--clients 200] [--seconds 300] [--reclaim-every 20] [--kill-every 60] [--json FILE]

A small random MoE on five nodes of this machine: one engine, three shards. Clients stream greedy answers one after
another, each to one of a few prompts whose answer is known from an undisturbed run; one that is refused with 429 waits
a second and asks again. Meanwhile the owner reclaims a node now and then, and lends it again, and nodes die. The memory
of gateway, engines and shards is watched: a process's first minute is its warm-up, and what it holds then is held
against what it holds at the end.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.failover import Bench, served
from bench.memory_watch import Growth, MemoryWatch
from bench.report import Row, argument_parser, publish, row
from bench.served_models import olmoe
from bench.streams import Refused, stream
from fallow.local_cluster import LocalCluster

PROMPTS, TOKENS = 8, 24
LARGEST_GROWTH = 1.1
"""Of the gateway, which lives through all of it, from its warm-up to the end. Shards take over what others held."""


@dataclass
class Tally:
    """What became of all requests; `answered` counts those whose text is right."""

    answered: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def prompt_of(number: int) -> list[int]:
    """One of the prompts."""
    return [40 + number, 41, 42 + number, 43]


class Clients:
    """`count` threads that ask one after another until `stop`."""

    def __init__(self, endpoint: str, model: str, answers: dict[int, str], count: int) -> None:
        self.tally = Tally()
        self._endpoint, self._model, self._answers = endpoint, model, answers
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(number,), daemon=True) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self, patience_s: float) -> bool:
        """Let every request under way come to its end; whether all did in time."""
        self._over.set()
        deadline_s = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _ask_on(self, number: int) -> None:
        for turn in itertools.count(number):
            if self._over.is_set():
                return
            self._ask(turn % PROMPTS)

    def _ask(self, which: int) -> None:
        tally = self.tally
        try:
            told = stream(self._endpoint, self._model, prompt_of(which), TOKENS)
        except Refused as error:
            with tally.lock:
                if error.status == 429:
                    tally.refused += 1
                else:
                    tally.broken.append(str(error))
            self._over.wait(1.0)
            return
        except httpx.HTTPError as error:
            with tally.lock:
                tally.broken.append(repr(error))
            return
        with tally.lock:
            if told.text == self._answers[which] and told.tokens == TOKENS:
                tally.answered += 1
            else:
                tally.wrong.append(f"prompt {which}: {told.text!r}")
            tally.seconds.append(told.arrivals_s[-1] - told.asked_s)
            tally.gaps_s.append(told.longest_gap_s(told.asked_s))


def disturb(cluster: LocalCluster, seconds: float, reclaim_every_s: float, kill_every_s: float) -> Counter[str]:
    """Reclaims and kills for so long; what happened how often. Nodes come back a while later."""
    chance, done, start_s = random.Random(1), Counter[str](), time.monotonic()
    due = {"reclaim": reclaim_every_s, "kill": kill_every_s}
    away: list[tuple[float, Callable[[], object]]] = []
    while (now_s := time.monotonic() - start_s) < seconds:
        for event, at_s in list(due.items()):
            if now_s < at_s:
                continue
            lent = [node.id for node in cluster.client.nodes() if node.lease_state == "ready" and node.workers]
            if len(lent) >= 3 and not away:
                node = chance.choice(sorted(lent))
                away.append((now_s + 0.5 * reclaim_every_s, strike(cluster, node, event)))
                due[event] = now_s + {"reclaim": reclaim_every_s, "kill": kill_every_s}[event]
                done[event] += 1
        for back in [entry for entry in away if entry[0] <= now_s]:
            away.remove(back)
            back[1]()
        time.sleep(0.2)
    for _, mend in away:
        mend()
    return done


def strike(cluster: LocalCluster, node: str, event: str) -> Callable[[], object]:
    """Do it to a node; how it comes back."""
    if event == "kill":
        cluster.kill_node(node)
        return lambda: cluster.start_agent(node)
    cluster.reclaim(node, 10.0)
    return lambda: cluster.lend(node)


def known_answers(bench: Bench) -> dict[int, str]:
    """What the undisturbed model says to every prompt."""
    job = bench.settled()
    return {number: stream(job.endpoint, job.name, prompt_of(number), TOKENS).text for number in range(PROMPTS)}


def left_over(bench: Bench) -> float:
    """Requests that the gateway still has once nobody asks any more; what it reports may be some seconds old."""
    deadline_s = time.monotonic() + 15.0
    while True:
        counts = bench.settled().metrics
        left = counts["running"] + counts["waiting"]
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(0.5)


def memory_rows(role: str, growth: Growth) -> list[Row]:
    """What a role's processes held."""
    of = f"{role} ({growth.processes})"
    limit = {"at_most": LARGEST_GROWTH} if role == "gateway" else {}
    return [
        row(f"{of}: private memory, once warm", "MB", growth.warm_mb),
        row(f"{of}: private memory, at the end", "MB", growth.end_mb),
        row(f"{of}: at the end over once warm", "ratio", growth.end_mb / growth.warm_mb, **limit),
        row(f"{of}: growth", "MB/min", growth.mb_per_minute),
    ]


def main() -> None:
    """Run it and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--reclaim-every", type=float, default=20.0)
    parser.add_argument("--kill-every", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as name, served(olmoe(Path(name))) as bench:
        answers, job = known_answers(bench), bench.settled()
        memory = MemoryWatch(bench.cluster.processes)
        clients = Clients(job.endpoint, job.name, answers, options.clients)
        done = disturb(bench.cluster, options.seconds, options.reclaim_every, options.kill_every)
        ended, tally = clients.stop(180.0), clients.tally
        growth, left = memory.stop(), left_over(bench)
    for line in [*tally.wrong, *tally.broken][:5]:
        print(line)
    rows = [
        row("requests answered rightly", "requests", tally.answered, at_least=1),
        row("answered wrongly", "requests", len(tally.wrong), at_most=0),
        row("broken off or refused otherwise than with 429", "requests", len(tally.broken), at_most=0),
        row("without an end", "of 1", float(not ended), at_most=0),
        row("refused with 429", "requests", tally.refused),
        row("reclaims", "nodes", done["reclaim"]),
        row("kills", "nodes", done["kill"]),
        row("seconds per request, median", "s", statistics.median(tally.seconds or [0.0])),
        row("longest wait between two pieces", "s", max(tally.gaps_s or [0.0])),
        row("left in the gateway", "requests", left, at_most=0),
        *itertools.chain(*(memory_rows(role, of_role) for role, of_role in growth.items())),
    ]
    publish("serving_load", rows, options.json)


if __name__ == "__main__":
    main()
