"""How long a node that joins a running train job takes to its first step, part by part, on real processes and raylets.

    python -m bench.warm_up [--rounds 5] [--json FILE]

Two nodes on this machine, so that with two cores each has one. The job trains on both; in each round the owner takes
one back and lends it again. Times are the scheduler's, from its opening of the new lease.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping

from bench.report import argument_parser, publish, row
from fallow.demo.owner import take_back
from fallow.local_cluster import LocalCluster
from fallow.processes import exiting_on_sigterm
from fallow.results import Job, JobEvent

GRACE_S, PATIENCE_S, BETWEEN = 5.0, 120.0, 50
MODEL = {"vocab_size": 300, "hidden_size": 32, "layers": 2, "heads": 2, "experts": 4, "expert_size": 32}
TRAIN = {"model": MODEL, "steps": 10**8, "global_batch": 8, "sequence_length": 32}
NODE = "node-2"


class Bench:
    """A train job on a cluster of its own."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        train = {**TRAIN, "output": str(cluster.home / "out")}
        spec = {"kind": "train", "name": "warm-up", "width": {"min": 1, "max": 2}, "train": train}
        self._job = cluster.client.submit(spec).job

    def round(self) -> dict[str, float]:
        """Seconds by part of one return of the node."""
        self._until(lambda job: _runs_at(job, 2))
        steps = self._until(lambda job: job.step > 0).step
        self._until(lambda job: job.step > steps + BETWEEN)
        take_back(self._cluster, NODE, GRACE_S)
        steps = self._until(lambda job: _runs_at(job, 1)).step
        self._until(lambda job: job.step > steps + BETWEEN)
        self._cluster.lend(NODE)
        self._until(lambda job: _runs_at(job, 2))
        node = next(node for node in self._cluster.client.nodes() if node.id == NODE)
        events = self._cluster.client.why(self._job).events
        assert node.lease_started_s is not None
        return parts(events, node.lease_started_s)

    def _until(self, reached: Callable[[Job], bool]) -> Job:
        deadline_s = time.monotonic() + PATIENCE_S
        while not reached(job := self._cluster.client.job(self._job)):
            if job.is_over or time.monotonic() > deadline_s:
                raise RuntimeError(f"the job is {job.state} at width {job.width}: {job.message}")
            time.sleep(0.05)
        return job


def _runs_at(job: Job, width: int) -> bool:
    return job.state == "running" and bool(job.rescales) and job.rescales[-1].width == width == job.width


def parts(events: tuple[JobEvent, ...], opened_s: float) -> dict[str, float]:
    """By part, from what the job's events say since the lease was opened: Ray's node first, then the worker's parts."""
    since = [event for event in events if event.at_s >= opened_s]
    assigned = next(event for event in since if event.kind == "assign")
    running = next(event for event in since if event.kind == "worker_running")
    return {"raylet": assigned.at_s - opened_s, **worker_parts(running), "all": running.at_s - opened_s}


def worker_parts(running: JobEvent) -> dict[str, float]:
    """Seconds of the worker's own warm-up by part, as the event of its first step tells them."""
    words = running.message.rpartition("was opened: ")[2].split(", ")
    return {name: float(seconds) for name, seconds, _ in (word.split() for word in words)}


def measure(rounds: int) -> Mapping[str, float]:
    """Median of each part."""
    with exiting_on_sigterm(), tempfile.TemporaryDirectory(prefix="fw-") as home, LocalCluster(home, 2) as cluster:
        bench = Bench(cluster)
        found = [bench.round() for _ in range(rounds)]
    names = dict.fromkeys(itertools.chain.from_iterable(found))
    return {name: statistics.median(one.get(name, 0.0) for one in found) for name in names}


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.rounds)
    rows = [row("warm-up: lease opened to first step", "s", found["all"], at_most=4.0)]
    rows += [row(f"of it {name}", "s", seconds) for name, seconds in found.items() if name != "all"]
    publish("warm_up", rows, options.json)


if __name__ == "__main__":
    main()
