"""The physical clock of one job's work: which nodes it holds, when it stands still, what it has done.

A job that gains a node stands still for its up cost, one that only loses nodes for its down cost, from the instant of
the change. A change during a stall starts a new stall that replaces the running one; changes at one instant count
once, by their net effect. A new node first warms up beside the running job, and is a gain when it is warm.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler.simulation.job_mix import MixJob

Values = NDArray[np.float64]
Change = tuple[float, tuple[str, ...], tuple[str, ...]]
"""(when, nodes that the job got, nodes that it lost), both sorted."""


@dataclass(frozen=True, slots=True)
class Physics:
    """What holds for all jobs of a replay: costs in place of the jobs' own, and how long a new node warms up."""

    up_s: float | None = None
    down_s: float | None = None
    warmup_s: float = 0.0


@dataclass(slots=True)
class Tally:
    """What became of a job's node-seconds. Held = worked + stalled + warming; useful is the worked part by its rate."""

    useful_s: float = 0.0
    held_s: float = 0.0
    stalled_up_s: float = 0.0
    stalled_down_s: float = 0.0
    warming_s: float = 0.0
    undone_up_s: float = 0.0  # useful node-seconds that stalls kept it from
    undone_down_s: float = 0.0
    stood_still_s: float = 0.0  # wall time of stalls
    stalls_up: int = 0
    stalls_down: int = 0
    rescales: int = 0  # changes of its warm nodes

    @property
    def lost_s(self) -> float:
        """Held node-seconds from which no useful one came."""
        return self.held_s - self.useful_s


@dataclass(slots=True)
class _Past:
    """How a job stood when the present instant began."""

    joined: frozenset[str] = frozenset()
    holds: frozenset[str] = frozenset()
    stalled_until_s: float = 0.0
    stall_is_up: bool = False


@dataclass(slots=True)
class JobClock:
    """One job. Nodes come and go through `hold` and `drop`; `close` ends an instant."""

    job: MixJob
    physics: Physics
    rates: Values = field(init=False)
    up_s: float = field(init=False)
    down_s: float = field(init=False)
    now_s: float = 0.0
    warm_s: dict[str, float] = field(default_factory=dict)  # held node -> when it is warm
    joined: set[str] = field(default_factory=set)
    stalled_until_s: float = 0.0
    stall_is_up: bool = False
    tally: Tally = field(default_factory=Tally)
    changes: list[Change] = field(default_factory=list)
    _past: _Past = field(default_factory=_Past)

    def __post_init__(self) -> None:
        self.rates = self.job.relative_rates()
        self.up_s = self.job.rescale_up_s if self.physics.up_s is None else self.physics.up_s
        self.down_s = self.job.rescale_down_s if self.physics.down_s is None else self.physics.down_s

    @property
    def rate(self) -> float:
        """Useful node-seconds a second while it does not stand still."""
        return float(self.rates[min(len(self.joined), len(self.rates) - 1)])

    def advance_to(self, now_s: float) -> None:
        """Count the time since the last instant, in which nothing changed. The last instant is then over for good."""
        if now_s <= self.now_s:
            return
        self._note_changes()
        passed_s = now_s - self.now_s
        stalled_s = min(passed_s, max(0.0, self.stalled_until_s - self.now_s)) if self.joined else 0.0
        tally, width = self.tally, len(self.joined)
        tally.held_s += passed_s * len(self.warm_s)
        tally.warming_s += passed_s * (len(self.warm_s) - width)
        tally.useful_s += (passed_s - stalled_s) * self.rate
        tally.stood_still_s += stalled_s
        if self.stall_is_up:
            tally.stalled_up_s += stalled_s * width
            tally.undone_up_s += stalled_s * self.rate
        else:
            tally.stalled_down_s += stalled_s * width
            tally.undone_down_s += stalled_s * self.rate
        self.now_s = now_s
        self._past = _Past(frozenset(self.joined), frozenset(self.warm_s), self.stalled_until_s, self.stall_is_up)

    def finish(self, at_s: float) -> None:
        """Count up to the end; the last instant is over too."""
        self.advance_to(at_s)
        self._note_changes()
        self._past = _Past(frozenset(self.joined), frozenset(self.warm_s), self.stalled_until_s, self.stall_is_up)

    def _note_changes(self) -> None:
        past = self._past
        came, left = self.warm_s.keys() - past.holds, past.holds - self.warm_s.keys()
        if came or left:
            self.changes.append((self.now_s, tuple(sorted(came)), tuple(sorted(left))))
        if self.joined != past.joined:
            self.tally.rescales += 1
            if self.joined - past.joined:
                self.tally.stalls_up += 1
            elif self.joined:
                self.tally.stalls_down += 1

    def hold(self, node: str) -> None:
        """The job gets a node, now."""
        if node not in self.warm_s:
            returned = node in self._past.joined  # it left and came back within this instant
            self.warm_s[node] = self.now_s if returned else self.now_s + self.physics.warmup_s

    def drop(self, node: str) -> None:
        """The job loses a node, now."""
        self.warm_s.pop(node, None)

    def close(self) -> None:
        """Warm nodes join, and a stall begins if the job is not as it was when this instant began.

        May be called again for the same instant after further changes; the last call counts.
        """
        past = self._past
        self.joined = {node for node, warm_s in self.warm_s.items() if warm_s <= self.now_s}
        self.stalled_until_s, self.stall_is_up = past.stalled_until_s, past.stall_is_up
        if self.joined != past.joined:
            self.stall_is_up = bool(self.joined - past.joined)
            self.stalled_until_s = self.now_s + (self.up_s if self.stall_is_up else self.down_s)

    def steady_s(self) -> float | None:
        """When everything held works: all nodes warm, no stall. None while some node is yet to be warm."""
        if len(self.joined) < len(self.warm_s):
            return None
        return max(self.now_s, self.stalled_until_s) if self.joined else self.now_s

    def done_s(self) -> float | None:
        """When the job's samples are done if nothing changes; None if never."""
        if self.job.samples is None or self.rate == 0.0:
            return None
        left_s = max(0.0, self.job.samples / self.job.one_node_rate - self.tally.useful_s)
        return max(self.now_s, self.stalled_until_s) + left_s / self.rate
