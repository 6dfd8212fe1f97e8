"""Recounts a replay from its timeline, the trace and the job mix alone, by the rules of the stall clock.

It shares no code with the simulation: plain lists of events, one job at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

Row = tuple[float, str, str, str]  # t_s, job, node, event


def read_timeline(text: str) -> list[Row]:
    header, *lines = text.splitlines()
    assert header == "t_s,job,node,event"
    rows = []
    for line in lines:
        at_s, job, node, event = line.split(",")
        rows.append((float(at_s), job, node, event))
    assert [row[0] for row in rows] == sorted(row[0] for row in rows), "not sorted by time"
    return rows


def check_holds(rows: Sequence[Row], idle: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A node is held by one job at a time, and only within its idle intervals."""
    held: dict[str, tuple[str, float]] = {}
    for at_s, job, node, event in rows:
        if event == "start":
            assert node not in held, f"{node} is held twice at {at_s}"
            held[node] = job, at_s
        else:
            holder, since_s = held.pop(node)
            assert holder == job
            spans = sorted(idle[node])
            start_s, end_s = spans[bisect_right(spans, (since_s, float("inf"))) - 1]
            assert start_s <= since_s < at_s <= end_s, f"{node} is used outside its idle time"
    assert not held, f"held to the end: {held}"


def useful_node_s(
    rows: Sequence[Row],
    curve: Sequence[tuple[int, float]],
    up_s: float,
    down_s: float,
    warmup_s: float,
    end_s: float,
) -> float:
    """Useful node-seconds of the one job whose rows these are."""
    moments: dict[float, list[tuple[str, str]]] = defaultdict(list)
    started: dict[str, float] = {}
    for at_s, _, node, event in rows:
        if event == "start":
            started[node] = at_s
            moments[at_s + warmup_s].append(("warm", node))
        else:
            moments[at_s].append(("gone", node))
            if at_s <= started[node] + warmup_s:  # it never got warm, or only as it went
                moments[started[node] + warmup_s].remove(("warm", node))
                moments[at_s].remove(("gone", node))
    members: set[str] = set()
    done = 0.0
    clear_s = last_s = 0.0
    for at_s in sorted(moments):
        done += _rate(curve, len(members)) * max(0.0, at_s - max(last_s, clear_s))
        before = set(members)
        for what, node in sorted(moments[at_s]):  # "gone" before "warm"
            members.discard(node) if what == "gone" else members.add(node)
        if members - before:
            clear_s = at_s + up_s
        elif before - members:
            clear_s = at_s + down_s
        last_s = at_s
    return done + _rate(curve, len(members)) * max(0.0, end_s - max(last_s, clear_s))


def _rate(curve: Sequence[tuple[int, float]], width: int) -> float:
    """Linear between the measured points, in units of the rate of one node."""
    one = curve[0][1] / curve[0][0]
    points = [(0, 0.0), *curve]
    for (w0, r0), (w1, r1) in pairwise(points):
        if w0 <= width <= w1:
            return (r0 + (r1 - r0) * (width - w0) / (w1 - w0)) / one
    return points[-1][1] / one
