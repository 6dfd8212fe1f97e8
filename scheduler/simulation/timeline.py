"""Every hold of a node by a job, as a table from which anyone can recount the result: `t_s,job,node,event`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from scheduler.simulation.replay import JobRecord

HEADER = "t_s,job,node,event"


def rows(records: Iterable[JobRecord]) -> Iterator[tuple[float, str, str, str]]:
    """(time, job, node, "start" or "stop"), sorted by time; at one time stops come before starts."""
    found = [
        (at_s, event, record.job.id, node)
        for record in records
        for at_s, came, left in record.clock.changes
        for event, nodes in (("start", came), ("stop", left))
        for node in nodes
    ]
    found.sort(key=lambda row: (row[0], row[1] == "start", row[2], row[3]))
    return ((at_s, job, node, event) for at_s, event, job, node in found)


def write_timeline(records: Iterable[JobRecord], path: Path) -> None:
    """Write the table. Times are exact (the shortest decimal that reads back as the same number)."""
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER + "\n")
        file.writelines(f"{at_s!r},{job},{node},{event}\n" for at_s, job, node, event in rows(records))
