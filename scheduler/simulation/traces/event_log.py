"""Fallow's own event log as JSON lines: leases are idle intervals that really were lent.

One object a line with at least `kind`, `at_s` and `node`; of all kinds only `lease_opened` and `lease_ended` matter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from scheduler.simulation.traces.intervals import BadTrace, Trace, tidy


def recognises(first_line: str) -> bool:
    """Whether this line is a JSON object."""
    return first_line.lstrip().startswith("{")


def read(file: str, lines: Iterator[tuple[int, str]]) -> Trace:
    """Read the log. Leases without an end last until the last row; ends without an opening are left out."""
    opened: dict[str, tuple[int, float]] = {}
    rows: list[tuple[int, str, float, float]] = []
    left_out: Counter[str] = Counter()
    origin_s: float | None = None
    at_s = 0.0
    for number, line in lines:
        if not line.strip():
            continue
        kind, at_s, node = _row(file, number, line)
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


def _row(file: str, number: int, line: str) -> tuple[str, float, str]:
    try:
        row = json.loads(line)
        return str(row["kind"]), float(row["at_s"]), str(row.get("node", ""))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadTrace(file, number, f"not a row of the event log ({error})") from error
