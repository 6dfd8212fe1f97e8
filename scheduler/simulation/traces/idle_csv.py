"""Idle intervals as a table: `node,start_s,end_s`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from scheduler.simulation.traces.intervals import BadTrace, Trace, tidy

COLUMNS = ("node", "start_s", "end_s")


def recognises(first_line: str) -> bool:
    """Whether this is the header of such a table."""
    return "," in first_line and "node" in {name.strip() for name in first_line.split(",")}


def read(file: str, lines: Iterator[tuple[int, str]]) -> Trace:
    """Read the table. Unknown columns are left out and counted; a missing one is an error."""
    number, header = next(lines)
    names = [name.strip() for name in header.split(",")]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise BadTrace(
            file, number, f"column {', '.join(missing)} is missing: the header must name {', '.join(COLUMNS)}"
        )
    left_out: Counter[str] = Counter({f"column {name}": 1 for name in names if name not in COLUMNS})
    at = [names.index(name) for name in COLUMNS]
    return tidy(file, _rows(file, lines, at, len(names)), left_out)


def _rows(
    file: str, lines: Iterator[tuple[int, str]], at: list[int], width: int
) -> Iterator[tuple[int, str, float, float]]:
    node_at, start_at, end_at = at
    for number, line in lines:
        if not line.strip():
            continue
        cells = line.split(",")
        if len(cells) != width:
            raise BadTrace(file, number, f"has {len(cells)} cells where the header has {width}")
        try:
            yield number, cells[node_at].strip(), float(cells[start_at]), float(cells[end_at])
        except ValueError as error:
            raise BadTrace(file, number, f"a time is not a number: {line!r}") from error
