"""What a replay amounted to: the figures of the JSON file, and of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scheduler.planning.forecast import Calibration
from scheduler.simulation.bound import Bound, Presence, frictionless
from scheduler.simulation.calibration import calibrate
from scheduler.simulation.job_clock import Tally
from scheduler.simulation.replay import JobRecord, Replay

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """One job. Useful node-seconds are its samples divided by its one-node rate."""

    id: str
    useful_node_s: float
    samples: float
    arrived_s: float
    admitted_s: float | None  # None: it never was one of the jobs that may run
    ended_s: float | None
    longest_wait_s: float  # the longest that it was without a node
    rescales: int
    stalls_up: int
    stalls_down: int
    stood_still_s: float
    held_node_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """All figures of a replay. Node-hours: idle = what the trace offers; borrowed = held by jobs; lost = not useful."""

    replay: Replay
    bound: Bound
    jobs: tuple[JobOutcome, ...]
    total: Tally
    calibration: tuple[Calibration, ...]

    @property
    def harvest(self) -> float:
        """Useful work, as a share of the frictionless bound."""
        return self.total.useful_s / self.bound.useful_s if self.bound.useful_s else 0.0

    @property
    def u(self) -> float:
        """BFTrainer's U: useful work, as a share of what the jobs do on a static pool with the same node-time, which
        is counted while the same jobs are present: what is idle after the last has ended is nobody's loss. At most 1.
        """
        return self.total.useful_s / self.bound.static_s if self.bound.static_s else 0.0

    @property
    def fairness(self) -> float:
        """Jain's index of the jobs' mean rates while they were present: 1 if all fare alike, 1/n if one has all."""
        span = [(j.ended_s or self.replay.end_s) - j.arrived_s for j in self.jobs]
        rates = np.array([j.useful_node_s / s for j, s in zip(self.jobs, span, strict=True) if s > 0])
        squares = float((rates**2).sum() * len(rates))
        return float(rates.sum() ** 2 / squares) if squares else 1.0

    @property
    def losses(self) -> dict[str, float]:
        """What the frictionless bound has more, in useful node-seconds, by cause. They add up to bound - useful."""
        stalls = {"stalls_up": self.total.undone_up_s, "stalls_down": self.total.undone_down_s}
        rest = self.bound.useful_s - self.total.useful_s - sum(stalls.values())
        return {**stalls, "widths_and_warm_up": rest}

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        tally, latency = self.total, percentiles_ms(self.replay.planner_s)
        return {
            "harvest": self.harvest,
            "u": self.u,
            "useful_node_s": tally.useful_s,
            "bound_node_s": self.bound.useful_s,
            "span_s": [self.replay.start_s, self.replay.end_s],
            "instants": self.replay.instants,
            "unsettled_instants": self.replay.unsettled,
            "rescales": tally.rescales,
            "stalls": {
                "up": tally.stalls_up,
                "down": tally.stalls_down,
                "stood_still_s": tally.stood_still_s,
                "node_s": tally.stalled_up_s + tally.stalled_down_s,
            },
            "node_hours": {
                "idle": self.bound.idle_s / HOUR_S,
                "usable": self.bound.usable_s / HOUR_S,
                "borrowed": tally.held_s / HOUR_S,
                "useful": tally.useful_s / HOUR_S,
                "lost": tally.lost_s / HOUR_S,
            },
            "losses_node_s": self.losses,
            "starvation_s": max((j.longest_wait_s for j in self.jobs), default=0.0),
            "fairness": self.fairness,
            "planner": {"calls": len(self.replay.planner_s), "total_s": sum(self.replay.planner_s), **latency},
            "calibration": [asdict(c) for c in self.calibration],
            "jobs": [asdict(job) for job in self.jobs],
            "wall_s": self.replay.wall_s,
        }


def outcome_of(replay: Replay) -> Outcome:
    """Work the figures out."""
    present: list[Presence] = [
        (r.job, r.admitted_s, replay.end_s if r.ended_s is None else r.ended_s) for r in replay.jobs
    ]
    waiting = tuple(
        JobOutcome(job.id, 0.0, 0.0, at_s, None, None, replay.end_s - at_s, 0, 0, 0, 0.0, 0.0)
        for at_s, job in replay.never_admitted
        if at_s < replay.end_s
    )
    return Outcome(
        replay,
        frictionless(replay.trace, present, replay.start_s, replay.end_s),
        tuple(_job(record, replay.end_s) for record in replay.jobs) + waiting,
        total_of([record.clock.tally for record in replay.jobs]),
        tuple(calibrate(replay.trace)) if replay.trace.intervals else (),
    )


def total_of(tallies: Sequence[Tally]) -> Tally:
    """All jobs together."""
    sums = {name: sum(getattr(t, name) for t in tallies) for name in Tally.__slots__}
    return Tally(**sums)


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Latencies in milliseconds."""
    values = np.array(seconds or [0.0]) * 1e3
    p50, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": float(values.max())}


def _job(record: JobRecord, end_s: float) -> JobOutcome:
    tally = record.clock.tally
    return JobOutcome(
        id=record.job.id,
        useful_node_s=tally.useful_s,
        samples=tally.useful_s * record.job.one_node_rate,
        arrived_s=record.arrived_s,
        admitted_s=record.admitted_s,
        ended_s=record.ended_s,
        longest_wait_s=_longest_wait_s(record, end_s),
        rescales=tally.rescales,
        stalls_up=tally.stalls_up,
        stalls_down=tally.stalls_down,
        stood_still_s=tally.stood_still_s,
        held_node_s=tally.held_s,
    )


def _longest_wait_s(record: JobRecord, end_s: float) -> float:
    """The longest that a job was without a node, from its arrival to its end."""
    longest, width, since_s = 0.0, 0, record.arrived_s
    for at_s, came, left in record.clock.changes:
        if width == 0:
            longest = max(longest, at_s - since_s)
        width += len(came) - len(left)
        since_s = at_s
    over_s = end_s if record.ended_s is None else record.ended_s
    return max(longest, over_s - since_s) if width == 0 else longest
