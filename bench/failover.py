"""How long a stream stands still when a worker behind it leaves or dies, on real processes and raylets.

    python -m bench.failover [--gguf FILE] [--rounds 20] [--only EVENT ...] [--json FILE]

One engine and three shards on five nodes of this machine: SmolLM2-135M with experts (`bench.served_models` says where
FILE comes from), or without FILE a small random MoE. Each round streams the same text and, in its middle, has the owner
reclaim the node (10 s of grace) or kills everything on it, agent and raylet too. The stall is the longest wait between
two pieces as the client sees it. Then the node comes back and the job to its full width before the next round.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.report import Row, argument_parser, publish, row
from bench.served_models import olmoe, smollm2_with_experts
from bench.streams import Streamed, stream
from fallow.local_cluster import LocalCluster
from fallow.processes import exiting_on_sigterm, signal_all
from fallow.results import Job

NODES, SHARDS = 5, 3
GRACE_S = 10.0
PATIENCE_S = 180.0
PROMPT = "The history of the steam engine begins with a simple observation: "
TOKENS, DISTURB_AT = 120, 40
EVENTS = {"shard reclaimed": 0.3, "shard killed": 0.3, "engine reclaimed": 1.0, "engine killed": 3.0}
"""The events and the seconds that a stream may stand still for them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One round."""

    stall_s: float
    tokens_lost: int
    is_equal: bool


class Bench:
    """A served model on a cluster of its own."""

    def __init__(self, cluster: LocalCluster, job: str) -> None:
        self.cluster, self._job = cluster, job
        self._reference: Streamed | None = None

    def settled(self) -> Job:
        """The job at full width, a shard standing by for its engine. Raises TimeoutError."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            job = self.cluster.client.job(self._job)
            if job.is_over:
                raise RuntimeError(f"the job ended: {job.message}")
            ready = sum(node.lease_state == "ready" for node in self.cluster.client.nodes())
            whole = job.endpoint and job.state == "running" and job.width == 1 + SHARDS and ready == NODES
            if whole and job.metrics.get("understudies"):
                return job
            time.sleep(0.2)
        raise TimeoutError(f"the job did not come back to full width within {PATIENCE_S:.0f} s")

    def ordinary(self) -> Streamed:
        """An undisturbed stream; its text is what all others must say."""
        job = self.settled()
        self._stream(job, lambda count: None)
        self._reference = self._stream(job, lambda count: None)
        return self._reference

    def round(self, event: str) -> Outcome:
        """One disturbed stream, and the cluster whole again."""
        assert self._reference is not None
        job = self.settled()
        role, _, what = event.partition(" ")
        node = next(worker.node for worker in job.workers if worker.role == role)
        strike = self._strike(node, what)
        struck_s: list[float] = []

        def on_piece(count: int) -> None:
            if count == DISTURB_AT:
                struck_s.append(time.monotonic())
                strike()

        told = self._stream(job, on_piece)
        self._mend(node, what)
        return Outcome(
            told.longest_gap_s(struck_s[0]), self._reference.tokens - told.tokens, told.text == self._reference.text
        )

    def _strike(self, node: str, what: str) -> Callable[[], object]:
        """What does it. A node's processes are looked for before: a power cut takes neither time nor processor."""
        if what == "reclaimed":
            return lambda: self.cluster.reclaim(node, GRACE_S)
        doomed = self.cluster.node_processes(node)
        return lambda: signal_all(doomed, signal.SIGKILL)

    def _mend(self, node: str, what: str) -> None:
        if what == "reclaimed":
            self._await(lambda: not any(n.epoch and n.id == node for n in self.cluster.client.nodes()), "handed back")
            self.cluster.lend(node)
        else:
            self.cluster.kill_node(node)  # what had only just begun
            self.cluster.start_agent(node)

    @staticmethod
    def _await(condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"not {what} within {PATIENCE_S:.0f} s")
            time.sleep(0.1)

    @staticmethod
    def _stream(job: Job, on_piece: Callable[[int], None]) -> Streamed:
        return stream(job.endpoint, job.name, PROMPT, TOKENS, on_piece)


@contextlib.contextmanager
def served(model: Path) -> Iterator[Bench]:
    """The model on a fresh cluster, which ends with the block."""
    cluster = LocalCluster(Path(tempfile.mkdtemp(prefix="fw-")), NODES)
    part = {"model": str(model), "engines": {"min": 1, "max": 1}, "shards": {"min": 1, "max": SHARDS}, "copies": 2}
    with exiting_on_sigterm():
        try:
            cluster.start()
            cluster.await_ready_nodes(NODES)
            yield Bench(cluster, cluster.client.submit({"kind": "serve", "name": "bench", "serve": part}).job)
        finally:
            cluster.stop()
            cluster.remove()


def rows_of(event: str, outcomes: list[Outcome]) -> list[Row]:
    """Median and longest stall, and what it cost in tokens."""
    stalls_s = [outcome.stall_s for outcome in outcomes]
    return [
        row(f"{event}: stall, median of {len(outcomes)}", "s", statistics.median(stalls_s), at_most=EVENTS[event]),
        row(f"{event}: longest stall", "s", max(stalls_s)),
        row(f"{event}: tokens lost", "tokens", sum(abs(outcome.tokens_lost) for outcome in outcomes), at_most=0),
        row(f"{event}: texts that differ", "texts", sum(not o.is_equal for o in outcomes), at_most=0),
    ]


def _options() -> argparse.Namespace:
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--rounds", type=int, default=20, help="of each event")
    parser.add_argument("--only", nargs="+", choices=list(EVENTS), default=list(EVENTS), metavar="EVENT")
    return parser.parse_args()


def main() -> None:
    """Measure and publish."""
    options = _options()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as name:
        model = smollm2_with_experts(options.gguf, Path(name)) if options.gguf else olmoe(Path(name))
        with served(model) as bench:
            quiet = bench.ordinary()
            rows.append(row("undisturbed: longest wait between pieces", "s", quiet.longest_gap_s(quiet.arrivals_s[0])))
            for event in options.only:
                outcomes = []
                for number in range(options.rounds):
                    outcomes.append(bench.round(event))
                    print(f"{event} {number + 1}: {outcomes[-1]}", file=sys.stderr, flush=True)
                rows += rows_of(event, outcomes)
    publish("failover", rows, options.json)


if __name__ == "__main__":
    main()
