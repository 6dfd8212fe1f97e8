"""The owner's workload: a slice of a real log, compressed, replayed as batch jobs on a Slurm cluster of this host."""

from __future__ import annotations

import gzip
import math
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.slurm_machine import SlurmMachine

SHORTEST_RUN_S = 2.0
OWNER = "owner"
LIVELY = 15


@dataclass(frozen=True, slots=True, order=True)
class OwnersJob:
    """One job: when it is submitted (seconds from the beginning), its nodes, its run time and its limit."""

    submit_s: float
    nodes: int
    run_s: float
    limit_min: int


@dataclass(frozen=True, slots=True)
class Logged:
    """A job as Slurm's own completion log has it; times are Unix seconds, whole ones."""

    id: str
    name: str
    state: str
    start_s: float
    end_s: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Record:
    submit_s: float
    start_s: float
    run_s: float
    size: int
    asked_s: float


def read_slice(log: Path, nodes: int, seconds: float, factor: float, load: float) -> list[OwnersJob]:
    """Jobs of that slice of `log` (of `seconds` * `factor`) whose own load is nearest to `load`, of those in which at
    least LIVELY jobs are submitted; compressed by `factor` and brought from the log's machine to `nodes` nodes.

    A job takes its part of the machine, at least one node; where that makes it larger than it was, jobs are left out
    so that the offered load stays the slice's own. No job runs longer than half of the replay.
    """
    size, records = _records(log)
    window_s = seconds * factor
    starts = [record.submit_s for record in records]
    windows = [starts[0] + window_s * step for step in range(1, int((starts[-1] - starts[0]) / window_s) - 1)]
    lively = [at_s for at_s in windows if bisect_left(starts, at_s + window_s) - bisect_left(starts, at_s) >= LIVELY]
    used = _NodeSeconds(records)
    begin_s = min(
        lively,
        key=lambda at_s: (abs((used.until(at_s + window_s) - used.until(at_s)) / (size * window_s) - load), at_s),
    )
    return _replayed(records, size, nodes, begin_s, window_s, factor)


def _records(log: Path) -> tuple[int, list[_Record]]:
    size, records = 0, []
    with gzip.open(log, "rt", errors="replace") as lines:
        for line in lines:
            if line.startswith(";"):
                if "MaxNodes:" in line:
                    size = int(line.rpartition(":")[2])
                continue
            cells = [float(cell) for cell in line.split()]
            if len(cells) == 18 and cells[3] > 0 and cells[4] > 0:
                asked_s = cells[8] if cells[8] > 0 else cells[3]
                records.append(_Record(cells[1], cells[1] + max(0.0, cells[2]), cells[3], int(cells[4]), asked_s))
    return size, sorted(records, key=lambda record: (record.submit_s, record.start_s))


def _within_s(record: _Record, begin_s: float, window_s: float) -> float:
    return max(0.0, min(record.start_s + record.run_s, begin_s + window_s) - max(record.start_s, begin_s))


class _NodeSeconds:
    """Node-seconds used up to any time, from the running sum over starts and ends."""

    def __init__(self, records: Iterable[_Record]) -> None:
        edges = [(r.start_s, r.size) for r in records] + [(r.start_s + r.run_s, -r.size) for r in records]
        self._times, self._sums, self._rates = [-math.inf], [0.0], [0]
        for at_s, change in sorted(edges):
            passed_s = at_s - self._times[-1] if len(self._times) > 1 else 0.0
            self._sums.append(self._sums[-1] + self._rates[-1] * passed_s)
            self._times.append(at_s)
            self._rates.append(self._rates[-1] + change)

    def until(self, at_s: float) -> float:
        place = bisect_right(self._times, at_s) - 1
        return self._sums[place] + (self._rates[place] * (at_s - self._times[place]) if place else 0.0)


def _replayed(
    records: Iterable[_Record], size: int, nodes: int, begin_s: float, window_s: float, factor: float
) -> list[OwnersJob]:
    jobs, owed = [], 0.0
    for record in records:
        used_s = _within_s(record, begin_s, window_s)
        if not used_s:
            continue
        owed += record.size / size * used_s
        share = max(1, round(record.size * nodes / size))
        cost = share / nodes * used_s
        if cost > owed + 1.0 / nodes * 60 * factor:
            continue
        owed -= cost
        run_s = min(max(SHORTEST_RUN_S, used_s / factor), window_s / factor / 2)
        submit_s = max(0.0, record.submit_s - begin_s) / factor
        limit_min = max(math.ceil(run_s / 60 + 0.2), math.ceil(record.asked_s / factor / 60))
        jobs.append(OwnersJob(submit_s, share, run_s, min(limit_min, 60)))
    return sorted(jobs)


class Replay:
    """The jobs on one cluster. `starts` are Unix times noted by the jobs themselves, by the job's place in the list."""

    def __init__(self, machine: SlurmMachine, jobs: Sequence[OwnersJob], folder: Path) -> None:
        self.machine, self.jobs, self.folder = machine, jobs, folder
        self.submitted: dict[int, float] = {}
        self.ids: dict[str, int] = {}
        folder.mkdir(parents=True)
        folder.chmod(0o777)

    def run(self, seconds: float) -> None:
        """Submit every job at its time, and return after `seconds`."""
        began_s = time.time()
        for index, job in enumerate(self.jobs):
            time.sleep(max(0.0, began_s + job.submit_s - time.time()))
            script = f"date +%s.%N > {self.folder}/{index}\nsleep {job.run_s:.2f}"
            self.submitted[index] = time.time()
            options = (f"--nodes={job.nodes}", f"--time={job.limit_min}", f"--job-name={OWNER}-{index}")
            self.ids[self.machine.submit(script, "--partition=owner", "--exclusive", *options)] = index
        time.sleep(max(0.0, began_s + seconds - time.time()))

    def waits_s(self) -> dict[int, float]:
        """Seconds from submit to start of every job that has started."""
        waits = {}
        for index, submitted_s in self.submitted.items():
            note = self.folder / str(index)
            if note.exists() and (text := note.read_text().strip()):
                waits[index] = float(text) - submitted_s
        return waits


def logged(log: Path) -> list[Logged]:
    """Every job that the completion log (jobcomp/filetxt) has."""
    jobs = []
    for line in log.read_text().splitlines() if log.exists() else ():
        fields = dict(part.partition("=")[::2] for part in line.split())
        start_s, end_s = _unix_s(fields.get("StartTime", "")), _unix_s(fields.get("EndTime", ""))
        if start_s and end_s:
            nodes = expand(fields.get("NodeList", ""))
            jobs.append(Logged(fields["JobId"], fields["Name"], fields["JobState"], start_s, end_s, nodes))
    return jobs


def _unix_s(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def expand(nodes: str) -> tuple[str, ...]:
    """Names in a node list such as n[1-3,7],m2."""
    names: list[str] = []
    for prefix, ranges, plain in re.findall(r"([^,\[\]]+)\[([^\]]+)\]|([^,\[\]]+)", nodes):
        if plain:
            names.append(plain)
        for part in filter(None, ranges.split(",")):
            first, _, last = part.partition("-")
            names.extend(f"{prefix}{number}" for number in range(int(first), int(last or first) + 1))
    return tuple(names)
