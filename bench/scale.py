"""How a replay's time and memory grow with the machine: 100 to 100,000 nodes, training and served models mixed.

    python -m bench.scale --data ../shared/data --json FILE [--nodes 1000 70000] [--minutes M] [--picture FILE.svg]

Sites of up to 5,000 nodes are made of the Summit trace: each is the same machine some hours later, with nodes left out
or doubled until it has its size. One job for each 70 nodes, one in ten of them a served model. Each size runs in a
process of its own, so that its memory is its own. Times are of the processor, of which one core is used.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.report import Row, argument_parser, publish, row
from bench.scale_picture import picture
from scheduler.domain.jobs import JobKind, ModelShape, Role, RoleNeed
from scheduler.planning.plan import Replanner
from scheduler.simulation.collecting import seldom_collecting
from scheduler.simulation.job_mix import MixJob, read_job_mix
from scheduler.simulation.outcome import percentiles_ms
from scheduler.simulation.replay import Replayer, Setting
from scheduler.simulation.traces import IdleInterval, Trace, read_trace

SIZES = (100, 1_000, 10_000, 70_000, 100_000)
SITE_NODES = 5_000
NODES_A_JOB = 70
SHIFT_S = 5 * 3600.0
FROM_S = 75 * 3600.0
TRACE = "summit-2021-02-days0-9.idle.csv.gz"
MIX = "jobs_imagenet_imgps.json.gz"
SERVED = ModelShape(layers=4, experts=16, expert_bytes=20_000_000, dense_bytes=200_000_000)


def machine(trace: Trace, nodes: int, minutes: float) -> Trace:
    """The trace of `nodes` nodes at as many sites as that takes, for some minutes."""
    intervals: list[IdleInterval] = []
    names = sorted({interval.node for interval in trace.intervals})
    for site, first in enumerate(range(0, nodes, SITE_NODES)):
        shift_s = FROM_S + site * SHIFT_S
        size = min(SITE_NODES, nodes - first)
        copies: dict[str, list[str]] = {}
        for number in range(size):
            copies.setdefault(names[number * len(names) // size], []).append(f"s{site:02}-n{number:04}")
        intervals += _copied(trace.between(shift_s, shift_s + 60 * minutes), copies, shift_s)
    return Trace(tuple(sorted(intervals)))


def _copied(part: Trace, copies: dict[str, list[str]], shift_s: float) -> Iterator[IdleInterval]:
    for interval in part.intervals:
        for copy in copies.get(interval.node, ()):
            yield IdleInterval(interval.start_s - shift_s, copy, interval.end_s - shift_s)


def jobs_for(nodes: int, mix: tuple[MixJob, ...]) -> list[MixJob]:
    """Endless jobs, one in ten of them a served model."""
    jobs = []
    for number in range(max(10, nodes // NODES_A_JOB)):
        job = replace(mix[number % len(mix)], id=f"job-{number:04}", samples=None, submitted_s=0.0)
        jobs.append(_served(job) if number % 10 == 9 else job)
    return jobs


def _served(job: MixJob) -> MixJob:
    roles = (RoleNeed(Role.ENGINE, 1, 1), RoleNeed(Role.SHARD, 2, 7))
    return replace(job, kind=JobKind.SERVE, roles=roles, min_width=3, max_width=8, shape=SERVED, copies=2)


def measure(nodes: int, minutes: float, data: Path) -> dict[str, Any]:
    """Replay one size in this process."""
    trace = machine(read_trace(data / "traces" / TRACE), nodes, minutes)
    jobs = jobs_for(nodes, read_job_mix(data / "jobs" / MIX)[0])
    setting = Setting(parallel=len(jobs), endless=True, site_of=lambda node: node[:3])
    with seldom_collecting():
        replay = Replayer(trace, jobs, Replanner(), setting, stopwatch=time.process_time).run()
    return {
        "nodes": nodes,
        "idle_nodes": trace.nodes,
        "jobs": len(jobs),
        "instants": replay.instants,
        "plans": len(replay.planner_s),
        "first_plan_ms": 1e3 * replay.planner_s[0],
        **percentiles_ms(replay.planner_s),
        "wall_s": replay.wall_s,
        "ms_per_instant": 1e3 * replay.wall_s / max(1, replay.instants),
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def _in_a_process(nodes: int, options: argparse.Namespace) -> dict[str, Any]:
    arguments = ["--one", str(nodes), "--minutes", str(options.minutes), "--data", str(options.data)]
    done = subprocess.run([sys.executable, "-m", "bench.scale", *arguments], check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    print(figures, file=sys.stderr)
    return figures


def rows_of(figures: dict[str, Any]) -> list[Row]:
    """What SCALE.md shows of one size."""
    size = f"{figures['nodes']:,} nodes, {figures['jobs']:,} jobs"
    goal = figures["nodes"] <= 14 * SITE_NODES
    return [
        row(f"planner, 99th percentile, {size}", "ms", figures["p99_ms"], at_most=1000.0 if goal else None),
        row(f"planner, median, {size}", "ms", figures["p50_ms"]),
        row(f"planner, first plan, {size}", "ms", figures["first_plan_ms"]),
        row(f"whole loop for one instant, {size}", "ms", figures["ms_per_instant"]),
        row(f"memory, {size}", "GB", figures["memory_gb"], at_most=4.0 if goal else None),
        row(f"nodes that were idle at some time, {size}", "nodes", figures["idle_nodes"]),
        row(f"plans, {size}", "plans", figures["plans"]),
    ]


def main() -> None:
    """Measure every size, print the table, write the JSON."""
    parser = argument_parser("Time and memory of a replay, from 100 to 100,000 nodes.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with traces/ and jobs/")
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES, help="sizes to measure")
    parser.add_argument("--minutes", type=float, default=10.0, help="of trace to replay")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the figures over the sizes")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.minutes, options.data)))
        return
    sizes = [_in_a_process(nodes, options) for nodes in options.nodes]
    publish("scale", [made for figures in sizes for made in rows_of(figures)], options.json)
    if options.picture:
        options.picture.write_text(picture(sizes), encoding="utf-8")


if __name__ == "__main__":
    main()
