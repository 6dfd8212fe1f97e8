"""What growing, shrinking on notice and a killed node cost a training job: Fallow, and Ray Train's elastic training.

    python -m bench.rescale --json FILE [--rounds N]        needs `pip install 'ray[train]'`

One after the other on real raylets of this machine, in one run: the same model, data, global batch, and interval
between snapshots (ours, in memory) or checkpoints (Ray Train's, on disk). A round is: a third node joins, leaves on
notice, another joins and is killed with all of its processes. A stall is how long nobody trained, from the steps'
own ends; what a step takes is not part of it. Ray Train looks for new nodes every few seconds here, not every minute.
At the end a worker of ours is stopped with SIGSTOP; Ray Train would wait for it for ten minutes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import Row, argument_parser, publish, row
from bench.rescale_cluster import Cluster, cluster
from bench.rescale_jobs import GRACE_S, Contestant, FallowJob, RayTrainJob
from bench.rescale_ours import Ours
from bench.rescale_steps import STEPS_AFTER, Cost, cost
from fallow.processes import exiting_on_sigterm
from protocol.jobspec import JobSpec, parse
from runtime.site.controller import LeaseKey

log = logging.getLogger(__name__)
PEER = "Ray Train elastic"


@dataclass
class Measured:
    """By kind ("grow", "shrink", "kill"), each time anew."""

    costs: dict[str, list[Cost]] = field(default_factory=dict)
    moved: dict[str, list[int]] = field(default_factory=dict)

    def add(self, kind: str, found: Cost, moved: int) -> None:
        """Keep one."""
        self.costs.setdefault(kind, []).append(found)
        self.moved.setdefault(kind, []).append(moved)

    def median(self, kind: str, figure: str) -> float:
        """The median of a cost's figure."""
        return statistics.median(getattr(one, figure) for one in self.costs[kind])


def job(options: Any) -> JobSpec:
    """What both train."""
    model = {"vocab_size": 1024, "hidden_size": options.hidden, "layers": 4, "heads": 4, "experts": 8}
    model |= {"expert_size": 2 * options.hidden, "experts_per_token": 2}
    part = {"model": model, "steps": 1_000_000, "global_batch": 12, "sequence_length": 64, "output": "out"}
    part |= {"snapshot_every": 8, "checkpoint_every": 1000}
    return parse({"kind": "train", "name": "bench", "width": {"min": 2, "max": 3}, "train": part})


async def play(contestant: Contestant, nodes: Cluster, leases: list[LeaseKey], rounds: int) -> Measured:
    """All rescales, `rounds` times, with a contestant that trains on two nodes."""
    measured = Measured()
    await contestant.until(lambda: len(contestant.steps) > STEPS_AFTER and contestant.steps[-1].width == len(leases))
    for _ in range(rounds):
        leaving = await _grow(contestant, nodes, leases, measured)
        announced_s = time.time()
        await contestant.announced(leases, leaving)
        ends_s = announced_s + GRACE_S
        killing = asyncio.create_task(_kill_at(nodes, leaving, ends_s))
        await _measure("shrink", contestant, announced_s, len(leases), measured)
        await killing
        dying = await _grow(contestant, nodes, leases, measured)
        killed_s = time.time()
        killing = asyncio.create_task(nodes.kill(dying))
        await contestant.killed(leases, dying)
        await _measure("kill", contestant, killed_s, len(leases), measured)
        await killing
    return measured


async def _grow(contestant: Contestant, nodes: Cluster, leases: list[LeaseKey], measured: Measured) -> LeaseKey:
    started_s, lease = time.time(), nodes.start()
    await nodes.ready(lease)
    await contestant.joined([*leases, lease])
    await _measure("grow", contestant, started_s, len(leases) + 1, measured)
    return lease


async def _kill_at(nodes: Cluster, lease: LeaseKey, at_s: float) -> None:
    await asyncio.sleep(max(at_s - time.time(), 0.0))
    await nodes.kill(lease)


async def _measure(kind: str, contestant: Contestant, caused_s: float, width: int, measured: Measured) -> None:
    found = await contestant.until(lambda: cost(contestant.steps, caused_s, width))
    measured.add(kind, found, contestant.moved(width))
    log.info("%s %s: %s", type(contestant).__name__, kind, found)


async def ours(spec: JobSpec, nodes: Cluster, folder: Path, rounds: int) -> tuple[Measured, FallowJob]:
    """Fallow's figures."""
    leases = [nodes.start(), nodes.start()]
    await nodes.ready(*leases)
    contestant = FallowJob(Ours(spec, nodes, folder), nodes)
    await contestant.ours.start(leases)
    measured = await play(contestant, nodes, leases, rounds)
    await _hang(contestant, nodes, leases, measured)
    await contestant.ours.stop()
    await nodes.close()
    return measured, contestant


async def _hang(contestant: FallowJob, nodes: Cluster, leases: list[LeaseKey], measured: Measured) -> None:
    hanging = await _grow(contestant, nodes, leases, measured)
    hung_s = time.time()
    nodes.pause(hanging, "TrainWorkerActor")
    await contestant.killed(leases, hanging)
    await _measure("hang", contestant, hung_s, len(leases), measured)


async def peers(spec: JobSpec, nodes: Cluster, folder: Path, rounds: int) -> Measured:
    """Ray Train's figures."""
    leases = [nodes.start(), nodes.start()]
    await nodes.ready(*leases)
    contestant = RayTrainJob(spec, nodes, folder)
    try:
        return await play(contestant, nodes, leases, rounds)
    finally:
        contestant.stop()


def rows_of(mine: Measured, theirs: Measured, side: FallowJob) -> list[Row]:
    """What is published."""
    import ray

    rows, name = [], f"{PEER} (ray {ray.__version__})"
    for kind in ("grow", "shrink", "kill"):
        stalls = mine.median(kind, "stall_s"), theirs.median(kind, "stall_s")
        rows.append(row(f"{kind}: nobody trains", "s", stalls[0], name, stalls[1], at_most=0.2, of="ratio"))
        again = mine.median(kind, "recomputed"), theirs.median(kind, "recomputed")
        rows.append(row(f"{kind}: steps recomputed", "steps", again[0], name, again[1]))
        moved = [statistics.median(m.moved[kind]) / 1e6 for m in (mine, theirs)]
        rows.append(row(f"{kind}: state moved", "MB", moved[0], name, moved[1]))
    apart = zip(mine.costs["grow"], side.moving_s, strict=True)
    still_s = statistics.median(max(grow.stall_s - moving_s, 0.0) for grow, moving_s in apart)
    rows.append(row("grow: nobody trains, apart from the time in which state moved", "s", still_s, at_most=0.3))
    *deaths_s, hang_s = side.detected_s
    rows.append(row("kill: death detected", "s", statistics.median(deaths_s), at_most=0.5))
    rows.append(row("hang: detected", "s", hang_s, at_most=2.0))
    resumed_s = mine.median("hang", "asked_s") - hang_s
    rows.append(row("hang: from then to the first step's end", "s", resumed_s))
    asked = mine.median("grow", "asked_s"), theirs.median("grow", "asked_s")
    rows.append(row("grow: raylet's start to first useful step", "s", asked[0], name, asked[1], at_most=4.0))
    medians = {part: statistics.median(w.get(part, 0.0) for w in side.warm_up) for part in side.warm_up[0]}
    return rows + [row(f"grow: of it, {part}", "s", seconds) for part, seconds in medians.items()]


async def measure(options: Any) -> list[Row]:
    """Both, one after the other on one cluster."""
    spec = job(options)
    with tempfile.TemporaryDirectory(prefix="fw-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        async with cluster(folder) as nodes:
            mine, side = await ours(spec, nodes, folder, options.rounds)
            theirs = await peers(spec, nodes, folder, options.rounds)
            return rows_of(mine, theirs, side)


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128, help="hidden size of the model")
    options = parser.parse_args()
    if missing := [name for name in ("pandas", "pyarrow", "tensorboardX") if importlib.util.find_spec(name) is None]:
        parser.error(f"Ray Train needs {', '.join(missing)}: pip install 'ray[train]'")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with exiting_on_sigterm():
        rows = asyncio.run(measure(options))
    publish("rescale", rows, options.json)


if __name__ == "__main__":
    main()
