"""A trace: for each node, the intervals in which its owner had nothing for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter


class BadTrace(ValueError):
    """A trace or job file that cannot be used; says file, line and what to do."""

    def __init__(self, file: str, line: int | None, problem: str) -> None:
        where = f"{file}, line {line}" if line else file
        super().__init__(f"{where}: {problem}")


@dataclass(frozen=True, slots=True, order=True)
class IdleInterval:
    """`node` is idle from `start_s` up to `end_s`; seconds from the trace's own origin."""

    start_s: float
    node: str
    end_s: float


_by_start = attrgetter("start_s", "node", "end_s")
"""The order of intervals, as tuples, which sort much faster."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Invariant: intervals are sorted by start then node, and no two of one node overlap or touch."""

    intervals: tuple[IdleInterval, ...]
    left_out: tuple[tuple[str, int], ...] = field(default=())  # why, how many records

    @property
    def nodes(self) -> int:
        """How many nodes are idle at least once."""
        return len({interval.node for interval in self.intervals})

    @property
    def end_s(self) -> float:
        """When the last interval ends."""
        return max((interval.end_s for interval in self.intervals), default=0.0)

    @property
    def idle_node_s(self) -> float:
        """All idle time, in node-seconds."""
        return sum(interval.end_s - interval.start_s for interval in self.intervals)

    def between(self, start_s: float, end_s: float) -> Trace:
        """The part of the trace within [start_s, end_s), with time still counted from the trace's origin."""
        if all(start_s <= i.start_s and i.end_s <= end_s for i in self.intervals):
            return self
        cut = (
            IdleInterval(max(i.start_s, start_s), i.node, min(i.end_s, end_s))
            for i in self.intervals
            if i.start_s < end_s and i.end_s > start_s
        )
        return Trace(tuple(sorted(cut, key=_by_start)), self.left_out)


def tidy(file: str, rows: Iterable[tuple[int, str, float, float]], left_out: Counter[str]) -> Trace:
    """Make a trace of (line, node, start, end) rows; touching intervals of a node become one.

    Raises `BadTrace` for negative and endless times, an end before its start, and intervals of one node that overlap.
    """
    by_node: dict[str, list[tuple[float, float, int]]] = {}
    for line, node, start_s, end_s in rows:
        if not (math.isfinite(start_s) and math.isfinite(end_s)):
            raise BadTrace(file, line, f"node {node} has a time that is not a finite number ({start_s}, {end_s})")
        if start_s < 0 or end_s < 0:
            raise BadTrace(file, line, f"node {node} has a negative time ({min(start_s, end_s)}): count from 0")
        if end_s < start_s:
            raise BadTrace(file, line, f"node {node} ends at {end_s}, before its start at {start_s}")
        if end_s == start_s:
            left_out["intervals of no length"] += 1
            continue
        by_node.setdefault(node, []).append((start_s, end_s, line))
    merged = (interval for node, spans in by_node.items() for interval in _merged(file, node, spans))
    return Trace(tuple(sorted(merged, key=_by_start)), tuple(sorted(left_out.items())))


def _merged(file: str, node: str, spans: list[tuple[float, float, int]]) -> list[IdleInterval]:
    spans.sort()
    for (_, end_s, line), (next_start_s, _, next_line) in pairwise(spans):
        if next_start_s < end_s:
            raise BadTrace(
                file,
                max(line, next_line),
                f"two idle intervals of node {node} overlap (the other is on line {min(line, next_line)})",
            )
    joined: list[IdleInterval] = []
    for start_s, end_s, _ in spans:
        if joined and joined[-1].end_s == start_s:
            joined[-1] = IdleInterval(joined[-1].start_s, node, end_s)
        else:
            joined.append(IdleInterval(start_s, node, end_s))
    return joined


def complement(
    file: str,
    busy: Iterable[tuple[str, float, float]],
    nodes: Iterable[str],
    span: tuple[float, float],
    left_out: Counter[str],
) -> Trace:
    """Idle intervals of `nodes` within `span`: whatever no (node, start, end) of `busy` covers; busy may overlap."""
    start_s, end_s = span
    by_node: dict[str, list[tuple[float, float]]] = {node: [] for node in nodes}
    for node, from_s, to_s in busy:
        by_node[node].append((from_s, to_s))
    idle: list[IdleInterval] = []
    for node, spans in by_node.items():
        free_s = start_s
        for from_s, to_s in sorted(spans):
            if from_s > free_s:
                idle.append(IdleInterval(free_s, node, from_s))
            free_s = max(free_s, to_s)
        if free_s < end_s:
            idle.append(IdleInterval(free_s, node, end_s))
    if not idle:
        raise BadTrace(file, None, "no node is ever idle in it: there is nothing to harvest")
    return Trace(tuple(sorted(idle, key=attrgetter("start_s", "node"))), tuple(sorted(left_out.items())))
