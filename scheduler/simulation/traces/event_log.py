"""Fallow's own event log: leases are idle intervals that really were lent.

Either the scheduler's SQLite database itself, which may be in use, or JSON lines: one object a line with at least
`kind`, `at_s` and `node`. Of all kinds only `lease_opened` and `lease_ended` matter.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from scheduler.simulation.traces.intervals import BadTrace, Trace, tidy

DATABASE = b"SQLite format 3\0"
"""What an SQLite database begins with."""

_Row = tuple[int, str, float, str]
"""(line or sequence, kind, when, node)"""


def recognises(first_line: str) -> bool:
    """Whether this line is a JSON object."""
    return first_line.lstrip().startswith("{")


def read(file: str, lines: Iterator[tuple[int, str]]) -> Trace:
    """Read JSON lines. Leases without an end last until the last row; ends without an opening are left out."""
    return _trace(file, (_row(file, number, line) for number, line in lines if line.strip()))


def read_database(path: Path) -> Trace:
    """Read a scheduler's database, in the same way. Raises `BadTrace` if it is another one, or damaged."""
    query = "SELECT sequence, kind, at_s, node FROM log ORDER BY sequence"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return _trace(path.name, database.execute(query))
    except sqlite3.Error as error:
        raise BadTrace(path.name, None, f"not the database of a Fallow scheduler ({error})") from error


def _trace(file: str, log: Iterable[_Row]) -> Trace:
    opened: dict[str, tuple[int, float]] = {}
    rows: list[tuple[int, str, float, float]] = []
    left_out: Counter[str] = Counter()
    origin_s: float | None = None
    at_s = 0.0
    for number, kind, at_s, node in log:
        origin_s = at_s if origin_s is None else origin_s
        if kind == "lease_opened":
            opened[node] = (number, at_s - origin_s)
        elif kind == "lease_ended" and node in opened:
            started, start_s = opened.pop(node)
            rows.append((started, node, start_s, at_s - origin_s))
        elif kind == "lease_ended":
            left_out["ends of leases that began before the log"] += 1
    rows += [(number, node, start_s, at_s - (origin_s or 0.0)) for node, (number, start_s) in opened.items()]
    if not rows:
        raise BadTrace(file, None, "no lease was opened in it")
    return tidy(file, rows, left_out)


def _row(file: str, number: int, line: str) -> _Row:
    try:
        row = json.loads(line)
        return number, str(row["kind"]), float(row["at_s"]), str(row.get("node", ""))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadTrace(file, number, f"not a row of the event log ({error})") from error
