"""What Fallow harvests of recorded idle time, against the published optimum (BFTrainer, arXiv 2106.12091).

    python -m bench.harvest --data ../shared/data --json FILE [--quick | --whole]

By default some days of each trace, about twenty minutes of one core; `--whole` takes all of them, four times as long.
Each replay that is done is told on standard error.

1. Ten endless jobs of each mix on each trace, at the data's own rescale costs: the live planner, which is told nothing,
   against BFTrainer's optimum at whichever T_fwd = 60, 300, 600, 1800 s proves best on that trace afterwards.
2. The same at the costs that Fallow's own runtime shows (`--rescale-up-s`, `--rescale-down-s`, `--warmup-s`). The
   defaults are those of FACTS for a regrouping without a restart: 0.3 s up, 1 s down, 3 s for a new process.
3. What notice before a reclaim is worth: without any, each loss costs a job `--kill-s` (detection and recovery, as
   `bench.rescale` measures them) and the work since its last snapshot; with notice `--notice-s` and no work. Notice
   that is part of the time lent costs that time, for jobs leave when they hear it; on top of it, it costs none. And how
   often jobs are struck, each time for half of the steps between two snapshots.
4. A served model with every expert twice on 16 nodes of Summit: how often every expert is live, and what has to be
   moved for that, against the same planner with the ages, cohorts and ends of all leases hidden from it. On the days
   on which placement was developed, and on others.
5. Jobs that come without any word on how they scale, on Summit, against the same with their true curves.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

import numpy as np

from bench.report import Row, argument_parser, publish, row
from scheduler.control_loop import Planner
from scheduler.domain.jobs import JobKind, ModelShape, Role, RoleNeed
from scheduler.domain.plan import Plan, Snapshot
from scheduler.planning.plan import Replanner, plan
from scheduler.simulation import policies
from scheduler.simulation.bound import frictionless, idle_counts
from scheduler.simulation.collecting import seldom_collecting
from scheduler.simulation.job_clock import Physics
from scheduler.simulation.job_mix import MixJob, read_job_mix
from scheduler.simulation.replay import Replay, Replayer, Setting
from scheduler.simulation.served_model import ServedModel
from scheduler.simulation.traces import Trace, read_trace

DAY_S = 86_400.0
PARALLEL = 10
HORIZONS_S = (60.0, 300.0, 600.0, 1800.0)
GRACES_S = (0.0, 5.0, 15.0, 30.0, 60.0, 120.0)
PARTS = ("published", "runtime", "grace", "served", "unknown")
"""What can be measured, in the order of the list above."""
STEPS_LOST = 4.0
"""By a kill: half of the eight steps between two snapshots."""
LOST_S = (0.0, 2.5, 5.0, 30.0)
"""Work that a kill without notice undoes: on average half of what is done between two snapshots."""
SERVED_NODES = 16
SERVED = MixJob(
    "served",
    min_width=3,
    max_width=SERVED_NODES,
    curve=((1, 1.0), (SERVED_NODES, float(SERVED_NODES))),
    samples=None,
    rescale_up_s=5.0,
    rescale_down_s=0.0,
    submitted_s=0.0,
    kind=JobKind.SERVE,
    roles=(RoleNeed(Role.ENGINE, 1, 1), RoleNeed(Role.SHARD, 2, SERVED_NODES - 1)),
    shape=ModelShape(layers=26, experts=64, expert_bytes=17_301_504, dense_bytes=1_200_000_000),
    copies=2,
)
"""The shape of DeepSeek-V2-Lite in two bytes a parameter. A node loads what it is to host in five seconds."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a recorded trace."""

    name: str
    file: str
    from_day: float
    to_day: float
    to_day_by_default: float | None = None  # None: all of it

    def shortened(self, is_whole: bool, days: float) -> Slice:
        """Up to where it is to be replayed."""
        to_day = self.to_day if is_whole or self.to_day_by_default is None else self.to_day_by_default
        return replace(self, to_day=min(to_day, self.from_day + days))

    def read(self, data: Path) -> Trace:
        """The trace, cut."""
        trace = read_trace(data / "traces" / self.file)
        return trace.between(self.from_day * DAY_S, self.to_day * DAY_S)


SUMMIT, PROMETHEUS = "summit-2021-02-days0-9.idle.csv.gz", "prometheus-2022-03-17.idle.csv.gz"
SLICES = (
    Slice("Summit", SUMMIT, 0, 10, 2),
    Slice("Prometheus", PROMETHEUS, 0, 1),
    Slice("KTH", "KTH-SP2-1996-2.swf.gz", 20, 48, 27),
    Slice("Theta", "ALCF-Theta-2022.swf.gz", 20, 34, 23),
)
UNSEEN = Slice("Summit, other days", SUMMIT, 4, 6)
"""Days on which the placement of served models was not developed."""
QUICK = (Slice("Summit", SUMMIT, 1, 1.03), Slice("Prometheus", PROMETHEUS, 0, 0.1))
MIXES = {"ShuffleNet": "jobs_hps_shufflenet.json.gz", "ImageNet": "jobs_imagenet_imgps.json.gz"}


@dataclass(frozen=True, slots=True)
class Run:
    """One replay. `horizon_s` is BFTrainer's T_fwd; None: the live planner."""

    trace: str
    mix: str
    horizon_s: float | None = None
    physics: Physics = field(default_factory=Physics)
    grace_s: float = 0.0
    curves_known: bool = True

    def __str__(self) -> str:
        policy = "live planner" if self.horizon_s is None else f"BFTrainer, T_fwd {self.horizon_s:g} s"
        physics, unknown = self.physics, "" if self.curves_known else ", scaling unknown"
        costs = "" if physics == Physics() else f", {physics.up_s:g}/{physics.down_s:g}/{physics.warmup_s:g} s"
        return f"{self.trace}, {self.mix}, {policy}{costs}, {self.grace_s:g} s of grace{unknown}"


_traces: dict[str, Trace] = {}
_mixes: dict[str, tuple[MixJob, ...]] = {}
"""Read once; the workers are forked with them."""


def harvest(run: Run) -> float:
    """Useful work as a share of the frictionless bound."""
    replay = _replayed(run)
    presences = [(r.job, r.admitted_s, replay.end_s) for r in replay.jobs]
    bound = frictionless(replay.trace, presences, replay.start_s, replay.end_s)
    return sum(record.clock.tally.useful_s for record in replay.jobs) / bound.useful_s


def strikes(run: Run) -> tuple[float, float]:
    """How often an hour a job lost nodes to their owner at once, and how many nodes in all."""
    replay = _replayed(run)
    ends = {(interval.node, interval.end_s) for interval in replay.trace.intervals}
    taken = [
        sum((node, at_s) in ends for node in left) for record in replay.jobs for at_s, _, left in record.clock.changes
    ]
    hours = (replay.end_s - replay.start_s) / 3600
    return sum(map(bool, taken)) / hours, sum(taken) / hours


def _replayed(run: Run) -> Replay:
    mix = _mixes[run.mix]
    setting = Setting(
        parallel=PARALLEL, endless=True, grace_s=run.grace_s, physics=run.physics, curves_known=run.curves_known
    )
    with seldom_collecting():
        return Replayer(_traces[run.trace], mix, _planner(run, mix), setting).run()


def _planner(run: Run, mix: Sequence[MixJob]) -> Planner:
    if run.horizon_s is None:
        return Replanner()
    up_s, down_s = run.physics.up_s, run.physics.down_s
    jobs = {
        job.id: replace(
            job,
            rescale_up_s=job.rescale_up_s if up_s is None else up_s,
            rescale_down_s=job.rescale_down_s if down_s is None else down_s,
        )
        for job in mix[:PARALLEL]
    }
    return policies.bftrainer(jobs, run.horizon_s)


# --- the served model ------------------------------------------------------------------------------------------


def served(trace: str, knows_lifetimes: bool) -> tuple[float, float]:
    """Share of the time with enough idle nodes in which every expert was live, and bytes moved an hour."""
    planner: Planner = Replanner() if knows_lifetimes else without_lifetimes
    with seldom_collecting():
        replay = Replayer(_traces[trace], [SERVED], planner, Setting(parallel=1, endless=True)).run()
    (record,) = replay.jobs
    assert record.model is not None
    return live_share(record.model, replay), record.model.moved_bytes / (replay.end_s - replay.start_s) * 3600


def without_lifetimes(snapshot: Snapshot) -> Plan:
    """The live planner with everything hidden that tells how long a node may last."""
    leases = tuple(replace(lease, cohort="one", started_s=0.0, expected_end_s=None) for lease in snapshot.leases)
    return plan(replace(snapshot, leases=leases, outlooks=()))


def live_share(model: ServedModel, replay: Replay) -> float:
    """Of the time in which `SERVED_NODES` nodes are idle."""
    times, idle = idle_counts(replay.trace, replay.start_s, replay.end_s)
    enough = np.concatenate([[0.0], np.cumsum(np.diff(times) * (idle[:-1] >= SERVED_NODES))])

    def enough_until(at_s: float) -> float:
        return float(np.interp(at_s, times, enough))

    live_s = sum(enough_until(to_s) - enough_until(from_s) for from_s, to_s, whole in model.spans if whole)
    return live_s / float(enough[-1])


# --- rows ------------------------------------------------------------------------------------------------------


class Desk:
    """Has replays made, each once, and tells of those that are done."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._asked: dict[Run, Future[float]] = {}
        self._began_s = time.perf_counter()
        self._lock = threading.Lock()
        self._done = 0

    def ask(self, run: Run) -> Future[float]:
        """What comes of it."""
        if run not in self._asked:
            self._asked[run] = self._pool.submit(harvest, run)
            self._asked[run].add_done_callback(lambda future: self._tell(run, future))
        return self._asked[run]

    def _tell(self, run: Run, future: Future[float]) -> None:
        with self._lock:
            self._done += 1
        if not future.cancelled() and future.exception() is None:
            passed_s = time.perf_counter() - self._began_s
            count = f"{self._done}/{len(self._asked)}, {passed_s:.0f} s"
            print(f"[{count}] {run}: {future.result():.4f}", file=sys.stderr, flush=True)


Ask = Callable[[Run], Future[float]]
Rows = Callable[[], list[Row]]


def published_costs(slices: Iterable[Slice], horizons_s: Sequence[float], ask: Ask) -> Rows:
    """Rows of 1."""
    cases = [(s.name, mix) for s in slices for mix in MIXES]
    ours = {case: ask(Run(*case)) for case in cases}
    peers = {(case, t): ask(Run(*case, horizon_s=t)) for case in cases for t in horizons_s}

    def rows() -> list[Row]:
        made, best_of_all = [], []
        for case in cases:
            best, horizon_s = max((peers[case, t].result(), t) for t in horizons_s)
            best_of_all.append(best)
            name = f"harvest, {case[0]}, {case[1]}, the data's own costs"
            peer = f"BFTrainer's optimum, T_fwd {horizon_s:g} s in hindsight"
            made.append(row(name, "of bound", ours[case].result(), peer, best, at_least=1.0, of="ratio"))
        means = mean(future.result() for future in ours.values()), mean(best_of_all)
        name = "harvest, mean of traces and mixes, the data's own costs"
        return [*made, row(name, "of bound", means[0], "BFTrainer's optima", means[1], at_least=1.0, of="ratio")]

    return rows


def unknown_curves(slices: Iterable[Slice], ask: Ask) -> Rows:
    """Rows of 5."""
    cases = [(s.name, mix) for s in slices if s.name == "Summit" for mix in MIXES]
    asked = [(case, ask(Run(*case, curves_known=False)), ask(Run(*case))) for case in cases]
    lasts_a_day = any(s.name == "Summit" and s.to_day - s.from_day >= 1 for s in slices)
    return lambda: [
        row(
            f"harvest, {case[0]}, {case[1]}, scaling unknown",
            "of bound",
            unknown.result(),
            "true curves",
            known.result(),
            at_least=0.95 if lasts_a_day else None,  # in an hour there is little time to learn
            of="ratio",
        )
        for case, unknown, known in asked
    ]


def runtime_costs(slices: Iterable[Slice], physics: Physics, ask: Ask) -> Rows:
    """Rows of 2."""
    goals = {"Summit": 0.99, "Prometheus": 0.985}
    asked = [(s.name, mix, ask(Run(s.name, mix, physics=physics))) for s in slices if s.name in goals for mix in MIXES]
    costs = f"{physics.up_s:g} s up, {physics.down_s:g} s down, {physics.warmup_s:g} s warm-up"
    return lambda: [
        row(f"harvest, {name}, {mix}, {costs}", "of bound", future.result(), at_least=goals[name])
        for name, mix, future in asked
    ]


def grace(
    slices: Iterable[Slice],
    known: Physics,
    struck: Physics,
    graces_s: Sequence[float],
    ask: Ask,
    pool: ProcessPoolExecutor,
) -> Rows:
    """Rows of 3: `known` holds with notice, `struck` without; the peer is notice that costs no lent time."""
    names, mix = [s.name for s in slices], "ShuffleNet"
    counts = {name: pool.submit(strikes, Run(name, mix, physics=struck)) for name in names}
    noticed = {(n, g): ask(Run(n, mix, physics=known, grace_s=g)) for n in names for g in graces_s}
    hits = {lost_s: replace(struck, down_s=(struck.down_s or 0.0) + lost_s) for lost_s in LOST_S}
    killed = {(n, lost_s): ask(Run(n, mix, physics=hits[lost_s])) for n in names for lost_s in LOST_S}
    peer = "notice on top of the time lent"

    def rows() -> list[Row]:
        made = []
        for name in names:
            best, (times, nodes) = noticed[name, 0.0].result(), counts[name].result()
            made.append(row(f"times that a job is struck, {name}, {mix}", "an hour", times))
            made.append(row(f"nodes that jobs lose to their owner, {name}, {mix}", "an hour", nodes))
            made.append(row(f"steps lost without notice, {name}, {mix}", "an hour", times * STEPS_LOST))
            for lost_s in LOST_S:
                what = f"harvest, {name}, {mix}, no notice, {lost_s:g} s of work lost by each kill"
                made.append(row(what, "of bound", killed[name, lost_s].result(), peer, best))
            for grace_s in graces_s:
                what = f"harvest, {name}, {mix}, {grace_s:g} s of notice out of the time lent"
                made.append(row(what, "of bound", noticed[name, grace_s].result(), peer, best))
        return made

    return rows


def serving(slices: Iterable[Slice], pool: ProcessPoolExecutor) -> Rows:
    """Rows of 4."""
    names = [s.name for s in slices if s.name.startswith("Summit")]
    asked = [(name, pool.submit(served, name, True), pool.submit(served, name, False)) for name in names]

    def rows() -> list[Row]:
        made = []
        for name, ours, blind in asked:
            (live, moved), (blind_live, blind_moved) = ours.result(), blind.result()
            peer = "the same, lifetimes unknown"
            share = f"every expert live while {SERVED_NODES} nodes are idle, {name}, two copies"
            bytes_moved = f"experts and weights moved, {name}"
            made.append(row(share, "of the time", live, peer, blind_live, at_least=0.999))
            made.append(row(bytes_moved, "GB/h", moved / 1e9, peer, blind_moved / 1e9, at_most=0.5, of="ratio"))
        return made

    return rows


def main() -> None:
    """Replay everything, print the table, write the JSON."""
    options = _options()
    slices = [s.shortened(options.whole, options.days) for s in (QUICK if options.quick else SLICES)]
    serving_slices = [*slices, *([] if options.quick else [UNSEEN.shortened(options.whole, options.days)])]
    _traces.update({s.name: s.read(options.data) for s in serving_slices})
    _mixes.update({name: read_job_mix(options.data / "jobs" / file)[0] for name, file in MIXES.items()})
    physics = Physics(options.rescale_up_s, options.rescale_down_s, options.warmup_s)
    horizons_s = (300.0,) if options.quick else HORIZONS_S
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        ask = Desk(pool).ask
        known, struck = replace(physics, down_s=options.notice_s), replace(physics, down_s=options.kill_s)
        graces_s = (0.0, 30.0) if options.quick else GRACES_S
        parts: dict[str, Callable[[], Rows]] = {
            "published": lambda: published_costs(slices, horizons_s, ask),
            "runtime": lambda: runtime_costs(slices, physics, ask),
            "grace": lambda: grace(slices, known, struck, graces_s, ask, pool),
            "unknown": lambda: unknown_curves(slices, ask),
            "served": lambda: serving(serving_slices, pool),
        }
        asked = [part() for name, part in parts.items() if name in options.only]
        publish("harvest", [made for rows in asked for made in rows()], options.json)


def _options() -> argparse.Namespace:
    parser = argument_parser("Fallow's planner and the published optimum on recorded idle time.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with traces/ and jobs/")
    parser.add_argument("--quick", action="store_true", help="some hours of two traces: about a minute")
    parser.add_argument("--whole", action="store_true", help="all days of every trace: ninety minutes of one core")
    parser.add_argument("--days", type=float, default=float("inf"), help="at most so many days of each trace")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="replays at a time")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of it")
    parser.add_argument("--rescale-up-s", type=float, default=0.3, help="the runtime's stall on growth")
    parser.add_argument("--rescale-down-s", type=float, default=1.0, help="the runtime's stall on a loss")
    parser.add_argument("--warmup-s", type=float, default=3.0, help="the runtime's warm-up of a new node")
    parser.add_argument("--kill-s", type=float, default=0.39, help="the runtime's stall when a node is killed")
    parser.add_argument("--notice-s", type=float, default=0.24, help="the runtime's stall when a node leaves on notice")
    options = parser.parse_args()
    if not (options.data / "traces").is_dir():
        parser.error(f"--data {options.data}: there is no folder traces/ in it")
    return options


if __name__ == "__main__":
    main()
