"""Standard Workload Format logs (Feitelson's Parallel Workloads Archive): idle time by placing the jobs.

The format says when each job ran and on how many processors, not where. Jobs are placed on the lowest-numbered free
nodes at their recorded start, which is what a linear node selection does; idle time is what remains.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from scheduler.simulation.traces.intervals import BadTrace, IdleInterval, Trace

FIELDS = 18


@dataclass(frozen=True, slots=True, order=True)
class _Run:
    start_s: float
    end_s: float
    size: int


def recognises(first_line: str) -> bool:
    """Whether this is a header comment or a record of the format."""
    return first_line.startswith(";") or len(first_line.split()) == FIELDS


def read(file: str, lines: Iterator[tuple[int, str]]) -> Trace:
    """Read the log. Jobs that never ran are left out and counted, and so is what does not fit the machine."""
    header: dict[str, str] = {}
    runs: list[_Run] = []
    left_out: Counter[str] = Counter()
    for number, line in lines:
        if line.startswith(";"):
            name, _, value = line.lstrip("; ").partition(":")
            header.setdefault(name.strip(), value.strip())
        elif line.strip():
            run = _run(file, number, line)
            if run is None:
                left_out["jobs that never ran"] += 1
            else:
                runs.append(run)
    if not runs:
        raise BadTrace(file, None, "no job in it ever ran")
    nodes = _machine_size(file, header, runs)
    return Trace(tuple(sorted(_idle(sorted(runs), nodes, left_out))), tuple(sorted(left_out.items())))


def _run(file: str, number: int, line: str) -> _Run | None:
    cells = line.split()
    if len(cells) != FIELDS:
        raise BadTrace(file, number, f"has {len(cells)} fields where the format has {FIELDS}")
    try:
        submit_s, wait_s, run_s, used, asked = (float(cells[i]) for i in (1, 2, 3, 4, 7))
    except ValueError as error:
        raise BadTrace(file, number, "a field is not a number") from error
    size = int(used if used > 0 else asked)
    if run_s <= 0 or size <= 0:
        return None
    if submit_s < 0:
        raise BadTrace(file, number, f"submitted at a negative time ({submit_s})")
    start_s = submit_s + max(0.0, wait_s)
    return _Run(start_s, start_s + run_s, size)


def _machine_size(file: str, header: dict[str, str], runs: list[_Run]) -> int:
    named = header.get("MaxNodes") or header.get("MaxProcs")
    if named is None:
        return max(run.size for run in runs)
    try:
        return int(named.split()[0])
    except (ValueError, IndexError) as error:
        raise BadTrace(file, None, f"MaxNodes in its header is not a number: {named!r}") from error


def _idle(runs: list[_Run], nodes: int, left_out: Counter[str]) -> Iterator[IdleInterval]:
    """Sweep over starts and ends; a node's idle interval runs from its release to its next job."""
    first_s = runs[0].start_s
    digits = len(str(nodes - 1))
    free = list(range(nodes))
    idle_since = [first_s] * nodes
    ends: list[tuple[float, list[int]]] = []

    def release(until_s: float) -> None:
        while ends and ends[0][0] <= until_s:
            end_s, members = heapq.heappop(ends)
            for node in members:
                idle_since[node] = end_s
                heapq.heappush(free, node)

    for run in runs:
        release(run.start_s)
        if run.size > len(free):
            left_out["jobs larger than what was free at their start (placed on what was)"] += 1
        members = [heapq.heappop(free) for _ in range(min(run.size, len(free)))]
        for node in members:
            if run.start_s > idle_since[node]:
                yield IdleInterval(idle_since[node] - first_s, f"n{node:0{digits}d}", run.start_s - first_s)
        if members:
            heapq.heappush(ends, (run.end_s, members))
    last_s = max((end_s for end_s, _ in ends), default=first_s)
    release(last_s)
    for node, since_s in enumerate(idle_since):
        if last_s > since_s:
            yield IdleInterval(since_s - first_s, f"n{node:0{digits}d}", last_s - first_s)
