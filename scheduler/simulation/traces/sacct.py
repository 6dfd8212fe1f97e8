"""Slurm's accounting: `sacct --allusers --parsable2 --allocations --format=JobID,Start,End,NodeList,State`.

A node is idle when no allocation of the output holds it. Nodes that no job ever used do not appear in the output,
and so not in the trace.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from scheduler.simulation.traces.intervals import BadTrace, Trace, complement

COLUMNS = ("Start", "End", "NodeList")
_NO_TIME = {"Unknown", "None", ""}
_NO_NODES = {"None assigned", "None", ""}


def recognises(first_line: str) -> bool:
    """Whether this is the header line that `--parsable2` prints."""
    return "|" in first_line and "JobID" in first_line.split("|")


def read(file: str, lines: Iterator[tuple[int, str]]) -> Trace:
    """Read the output. Job steps, jobs that never started and jobs still running are left out and counted."""
    number, header = next(lines)
    names = header.split("|")
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise BadTrace(
            file, number, f"column {', '.join(missing)} is missing: give sacct --format={','.join(('JobID', *COLUMNS))}"
        )
    left_out: Counter[str] = Counter()
    busy = list(_allocations(file, lines, names, left_out))
    if not busy:
        raise BadTrace(file, None, "no job in it held a node for any time")
    origin_s = min(start_s for _, start_s, _ in busy)
    shifted = [(node, start_s - origin_s, end_s - origin_s) for node, start_s, end_s in busy]
    end_s = max(end_s for _, _, end_s in shifted)
    return complement(file, shifted, {node for node, _, _ in shifted}, (0.0, end_s), left_out)


def _allocations(
    file: str, lines: Iterator[tuple[int, str]], names: list[str], left_out: Counter[str]
) -> Iterator[tuple[str, float, float]]:
    for number, line in lines:
        if not line.strip():
            continue
        cells = line.split("|")
        if len(cells) != len(names):
            raise BadTrace(file, number, f"has {len(cells)} cells where the header has {len(names)}")
        row = dict(zip(names, cells, strict=True))
        if "." in row.get("JobID", ""):
            left_out["job steps"] += 1
        elif row["Start"] in _NO_TIME or row["NodeList"] in _NO_NODES:
            left_out["jobs that never started"] += 1
        elif row["End"] in _NO_TIME:
            left_out["jobs that still run"] += 1
        else:
            start_s, end_s = (_time_s(file, number, row[name]) for name in ("Start", "End"))
            if end_s < start_s:
                raise BadTrace(file, number, f"the job ends ({row['End']}) before it starts ({row['Start']})")
            for node in _nodes(file, number, row["NodeList"]):
                yield node, start_s, end_s


def _nodes(file: str, number: int, text: str) -> list[str]:
    try:
        return expand_hostlist(text)
    except ValueError as error:
        raise BadTrace(file, number, f"not a list of nodes as sacct prints it: {text!r}") from error


def _time_s(file: str, number: int, text: str) -> float:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise BadTrace(file, number, f"not a time as sacct prints it: {text!r}") from error


def expand_hostlist(text: str) -> list[str]:
    """Names in a Slurm host list: `n[1-3,07],login` gives n1, n2, n3, n07, login. Widths of numbers are kept.

    Raises ValueError for a range that is not of numbers."""
    return [name for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text) for name in _expand(part)]


def _expand(part: str) -> list[str]:
    match = re.match(r"([^\[]*)\[([^\]]*)\](.*)$", part)
    if match is None:
        return [part]
    prefix, ranges, suffix = match.groups()
    numbers: list[str] = []
    for piece in ranges.split(","):
        low, _, high = piece.partition("-")
        numbers += [f"{n:0{len(low)}d}" for n in range(int(low), int(high or low) + 1)]
    return [prefix + number + rest for number in numbers for rest in _expand(suffix)]
