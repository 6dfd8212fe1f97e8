"""Sharing out: the planner beside the mixed-integer program in HiGHS, on the same instances in one run.

    python -m bench.planner --json FILE [--limit-s 60]

Jobs have curves with noise, weights, rescale costs of their own, and widths that they have now; every width is worth
what the planner takes it to be worth. HiGHS gets `--limit-s` for each instance, and does not count the time in which
the model is made. Ours is the worst of five instances (each the median of three runs); HiGHS solves the first. Times
are of the processor, of which each uses one core, so that what else the machine does counts for neither.

Whole plans, from snapshot to steps, are of machines that have settled (see `whole_plans`): the median of five plans by
who remembers the last snapshot, after 20 nodes went and 20 came, and by who does not.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.mixed_integer import Solved, by_node, by_width, solve
from bench.report import Row, argument_parser, publish, row
from bench.whole_plans import Machine, disturb, follow, machine
from scheduler.domain.jobs import RescaleCosts
from scheduler.planning.allocation import Demand
from scheduler.planning.candidates import Candidate, Key, Pooling
from scheduler.planning.curves import relative_rates
from scheduler.planning.plan import Replanner, plan
from scheduler.planning.pooling import choose_pools
from scheduler.planning.worth import Position, regret, width_values
from scheduler.simulation.collecting import seldom_collecting

SEEDS = range(5)
RUNS = 3
HORIZON_S = 300.0
MEASURED = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512, 1024)
ROUNDING_PERCENT = 1e-6


@dataclass(frozen=True, slots=True)
class Size:
    """`nodes` of all pools together. `gap`: at most so many per cent from the optimum, certified."""

    jobs: int
    nodes: int
    widest: int
    pools: int = 1
    goal_ms: float | None = None
    gap: float | None = None
    by_node: bool = False
    gangs: bool = False  # no job runs on less than half of its widest

    def __str__(self) -> str:
        pools = f" in {self.pools} pools" if self.pools > 1 else ""
        what = "gangs" if self.gangs else "jobs"
        return f"{self.jobs:,} {what} x {self.nodes:,} nodes{pools}, widths to {self.widest:,}"


ONE_POOL = (
    Size(10, 100, 32, gap=0.0, by_node=True),
    Size(50, 1_000, 64, goal_ms=15.0, gap=0.0, by_node=True),
    Size(50, 1_000, 1_000, goal_ms=15.0, gap=0.0),
    Size(1_000, 10_000, 256, goal_ms=100.0, gap=0.1),
    Size(5_000, 100_000, 256, goal_ms=1_000.0, gap=0.1),
    Size(200, 100_000, 2_000, goal_ms=1_000.0, gap=0.1),
)
WHOLE = (Size(50, 1_000, 64), Size(1_000, 10_000, 256), Size(5_000, 100_000, 256, goal_ms=1_000.0))
NODES_CHANGED = 20
SETTLED_AFTER = 4
"""Plans until hardly anything changes any more."""
SEVERAL = (
    Size(8, 32, 12, pools=2, gap=0.0),
    Size(10, 60, 16, pools=3),
    Size(20, 100, 16, pools=3),
    Size(40, 200, 32, pools=4, gap=0.1),
    Size(40, 200, 40, pools=4, gap=0.1, gangs=True),
    Size(20, 300, 100, pools=5, gap=0.1, gangs=True),
    Size(50, 1_000, 64, pools=2),
    Size(1_000, 10_000, 64, pools=4),
)


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """`now`: the jobs' widths."""

    candidates: list[Candidate]
    capacities: dict[Key, int]
    now: list[int]


def instance(size: Size, seed: int) -> Instance:
    """Jobs that run share the nodes of the pool that they are in; a third of all wait."""
    rng = np.random.default_rng(seed)
    keys = [("site", f"kind-{number}") for number in range(size.pools)]
    share = rng.dirichlet(np.full(size.pools, 5.0))
    capacities = {key: max(1, round(size.nodes * part)) for key, part in zip(keys, share, strict=True)}
    speed = dict(zip(keys, rng.uniform(0.3, 1.0, size.pools), strict=True))
    left = dict(capacities)
    made = [_job(rng, size, speed, left) for _ in range(size.jobs)]
    return Instance([candidate for candidate, _ in made], capacities, [now for _, now in made])


def _job(rng: np.random.Generator, size: Size, speed: dict[Key, float], left: dict[Key, int]) -> tuple[Candidate, int]:
    keys = list(speed)
    usable = [key for key in keys if rng.random() < 0.75] or [keys[int(rng.integers(len(keys)))]]
    home, first = usable[int(rng.integers(len(usable)))], int(rng.integers(1, 5))
    widest = int(rng.integers(max(first, size.widest // 2), size.widest + 1))
    first = max(1, widest // 2) if size.gangs else first
    now = min(left[home], widest, int(rng.integers(1, 2 * max(1, size.nodes // size.jobs) + 1)))
    now = now if now >= first and rng.random() < 2 / 3 else 0
    left[home] -= now
    exponent, costs = rng.uniform(0.4, 1.0), RescaleCosts(float(rng.uniform(0.5, 30)), float(rng.uniform(0.5, 15)))
    points = [(width, width**exponent * float(rng.uniform(0.95, 1.05))) for width in MEASURED if width <= widest]
    rates, weight = relative_rates(tuple(points), widest), float(rng.choice([0.5, 1, 1, 2]))
    on = {key: rates * (speed[key] * rng.uniform(0.7, 1.3) if len(keys) > 1 else 1.0) for key in usable}
    at = Position(now, now)
    own = width_values(on[home], at, costs, HORIZON_S, weight)
    leaving = weight * regret(on[home], at, costs, HORIZON_S)
    demands = {home: Demand(first, own[first:])}
    for key in usable:
        if key != home:
            away = width_values(on[key], Position(0, now), costs, HORIZON_S, weight) - leaving
            demands[key] = Demand(first, away[first:])
    return Candidate(demands, float(own[0])), now


# --- measure ---------------------------------------------------------------------------------------------------


def _timed(of: Instance) -> tuple[float, Pooling]:
    """Milliseconds, and what was found."""
    took_ms = []
    for _ in range(RUNS):
        began_s = time.process_time()
        found = choose_pools(of.candidates, of.capacities)
        took_ms.append(1e3 * (time.process_time() - began_s))
    return statistics.median(took_ms), found


def rows_of(size: Size, limit_s: float) -> Iterator[Row]:
    """What BENCHMARKS.md shows of one size."""
    instances = [instance(size, seed) for seed in SEEDS]
    measured = [_timed(of) for of in instances]
    worst_ms = max(took_ms for took_ms, _ in measured)
    certified = max(100 * found.gap / abs(found.bound) for _, found in measured)
    first, found = instances[0], measured[0][1]
    peers: dict[str, Callable[[], Solved]] = {
        "HiGHS by width": lambda: solve(by_width, first.candidates, first.capacities, limit_s=limit_s)
    }
    if size.by_node:
        nodes = sum(first.capacities.values())
        peers["HiGHS by node"] = lambda: solve(by_node, first.candidates, first.now, nodes, limit_s=limit_s)
    for name, ask in peers.items():
        yield from _beside(size, worst_ms, found, name, ask())
    at_most = None if size.gap is None else size.gap + ROUNDING_PERCENT
    yield row(f"certified distance from the optimum, {size}", "%", certified, at_most=at_most)


def _beside(size: Size, worst_ms: float, found: Pooling, name: str, peer: Solved) -> Iterator[Row]:
    proved = "optimum" if peer.is_optimal else "stopped"
    yield row(f"time, {size}", "ms", worst_ms, f"{name} ({proved})", 1e3 * peer.seconds, at_most=size.goal_ms)
    if np.isfinite(peer.value):
        short = 100 * (peer.value - found.value) / abs(peer.value)
        at_most = ROUNDING_PERCENT if size.pools == 1 else 1.0
        yield row(f"short of what {name} found, {size}", "%", short, at_most=at_most)


# --- whole plans -----------------------------------------------------------------------------------------------


def whole_rows_of(size: Size) -> Iterator[Row]:
    """What BENCHMARKS.md shows of whole plans of one size."""
    with seldom_collecting():
        replanner, now = Replanner(), machine(size.jobs, size.nodes, size.widest, seed=0)
        first_ms = _took_ms(partial(replanner, now.snapshot()))
        for _ in range(SETTLED_AFTER):
            now = follow(now, replanner(now.snapshot()))
        remembering, anew = [], []
        for round_ in range(len(SEEDS)):
            now = _changed(now, round_)
            snapshot = now.snapshot()
            remembering.append(_took_ms(partial(replanner, snapshot)))
            anew.append(_took_ms(partial(plan, snapshot)))
            now = follow(now, plan(snapshot))
    yield row(f"whole plan, nothing runs yet, {size}", "ms", first_ms)
    yield row(f"whole plan, nothing remembered, {size}", "ms", statistics.median(anew))
    label = f"whole plan, after {2 * NODES_CHANGED} of the nodes changed, {size}"
    yield row(label, "ms", statistics.median(remembering), at_most=size.goal_ms)


def _changed(before: Machine, round_: int) -> Machine:
    """Some nodes beside each other go, as many others come."""
    nodes = sorted(before.leases)
    first = round_ * len(nodes) // len(SEEDS)
    come = [f"x{round_}-{number:02}" for number in range(NODES_CHANGED)]
    return disturb(before, nodes[first : first + NODES_CHANGED], come)


def _took_ms(act: Callable[[], object]) -> float:
    began_s = time.process_time()
    act()
    return 1e3 * (time.process_time() - began_s)


def _all_rows(limit_s: float) -> Iterator[Row]:
    for size in WHOLE:
        yield from whole_rows_of(size)
    for size in (*SEVERAL, *ONE_POOL):
        yield from rows_of(size, limit_s)


def main() -> None:
    """Measure every size, print the table, write the JSON."""
    parser = argument_parser("The planner beside the mixed-integer program in HiGHS.")
    parser.add_argument("--limit-s", type=float, default=60.0, help="for HiGHS, for each instance")
    options = parser.parse_args()
    rows = []
    for made in _all_rows(options.limit_s):
        print(made.figure, f"{made.ours:.6g} {made.unit}", made.peer_name, made.peer or "", file=sys.stderr, flush=True)
        rows.append(made)
    publish("planner", rows, options.json)


if __name__ == "__main__":
    main()
