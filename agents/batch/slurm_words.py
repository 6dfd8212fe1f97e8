"""What Slurm's commands print, read by explicit fields, which are the same from 20.11 to 25. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agents.batch import Limits, Machine, PilotJob, PilotState, Refused

QUEUE_FORMAT = "%i|%T|%u|%l|%S|%N|%j"
"""Of squeue: id, state, user, time limit, start, nodes, name. The name comes last: it may contain anything."""

NODE_FORMAT = "%N|%T"
"""Of sinfo --Node: one line a node, with its state."""

_STATES = {
    "PENDING": PilotState.PENDING,
    "RUNNING": PilotState.RUNNING,
    "CONFIGURING": PilotState.RUNNING,
    "SUSPENDED": PilotState.RUNNING,
    "COMPLETING": PilotState.ENDING,
}
_OUT_OF_SERVICE = ("drain", "down", "fail", "maint", "reboot", "power", "unknown", "inval", "future", "no_respond")


@dataclass(frozen=True, slots=True)
class Queued:
    """One line of squeue."""

    id: str
    state: str
    user: str
    limit_s: float
    start_s: float | None  # Unix time; of a waiting job, when it is expected
    nodes: str
    name: str


def duration_s(text: str) -> float:
    """A time limit such as 30:00, 2:00:00 or 1-00:00:00; infinite for UNLIMITED and the like."""
    days, dash, rest = text.strip().rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or (dash and not days.isdigit()):
        return math.inf
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = (*(int(part) for part in parts), 0, 0)[:3]
        return int(days) * 86_400.0 + hours * 3600 + minutes * 60 + seconds
    seconds = 0
    for part in parts if len(parts) > 1 else (*parts, "0"):
        seconds = seconds * 60 + int(part)
    return float(seconds)


def limit_text(length_s: float) -> str:
    """A time limit as sbatch takes it, in whole minutes."""
    return str(max(1, int(length_s // 60)))


def queue(output: str) -> list[Queued]:
    """All lines of squeue. Raises Refused for output in another form."""
    rows = []
    for line in output.splitlines():
        fields = line.strip().split("|", 6)
        if len(fields) != 7:
            if line.strip():
                raise Refused(f"squeue printed {line.strip()[:200]!r}, not the fields that it was asked for")
            continue
        job, state, user, limit, start, nodes, name = fields
        rows.append(Queued(job, state, user, duration_s(limit), _unix_s(start), nodes, name))
    return rows


def _unix_s(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def node_states(output: str) -> dict[str, str]:
    """State of every node, in lower case without marks, such as idle, mixed, draining."""
    states = {}
    for line in output.splitlines():
        name, bar, state = line.strip().partition("|")
        if bar and name:
            states[name] = state.lower()
    return states


def machine(rows: list[Queued], states: Mapping[str, str], user: str, name: str, now_s: float) -> Machine:
    """What squeue and sinfo show together. Pilots are the jobs of `user` called `name`."""
    pilots = tuple(
        PilotJob(row.id, _STATES[row.state], row.limit_s, row.nodes)
        for row in rows
        if row.user == user and row.name == name and row.state in _STATES
    )
    waiting = [row for row in rows if row.state == "PENDING" and not (row.user == user and row.name == name)]
    starts = [row.start_s - now_s for row in waiting if row.start_s is not None]
    leaving = tuple(sorted(node for node, state in states.items() if _is_leaving(state)))
    return Machine(
        nodes=sum(not _is_out(state) for state in states.values()),
        idle=tuple(sorted(node for node, state in states.items() if state == "idle")),
        leaving=leaving,
        pilots=pilots,
        waiting=len(waiting),
        window_s=max(0.0, min(starts)) if starts else None,
    )


def _is_out(state: str) -> bool:
    return state.endswith("*") or any(word in state for word in _OUT_OF_SERVICE)


def _is_leaving(state: str) -> bool:
    return any(word in state for word in ("drain", "fail", "maint", "reboot"))


def settings(output: str) -> dict[str, str]:
    """NAME=VALUE or NAME = VALUE, as `scontrol show` prints them. Names in lower case."""
    found = {}
    for line in output.splitlines():
        if " = " in line:
            name, _, value = line.partition(" = ")
            found[name.strip().lower()] = value.strip()
        else:
            for match in re.finditer(r"(\w+)=(\S*)", line):
                found[match[1].lower()] = match[2]
    return found


def limits(config: Mapping[str, str], partition: Mapping[str, str]) -> Limits:
    """What the partition lets pilots have. Raises Refused while it is not up.

    A pilot that is preempted hears SIGTERM at the beginning of GraceTime; one that is cancelled, or preempted without
    a grace, KillWait before the kill. The agent cannot tell which of the two it heard, so the shorter one holds.
    """
    if partition.get("state", "UP") != "UP":
        raise Refused(f"partition {partition.get('partitionname', '')} is {partition['state']}")
    kill_wait_s = _number(config.get("killwait", "30"))
    grace_s = _number(partition.get("gracetime", "0"))
    mode = partition.get("preemptmode", "OFF").upper()
    by_what = config.get("preempttype", "preempt/none")
    return Limits(
        notice_s=min(grace_s, kill_wait_s) if grace_s > 0 else kill_wait_s,
        preemptible=by_what not in ("preempt/none", "(null)") and not mode.startswith("OFF"),
        longest_s=duration_s(partition.get("maxtime", "UNLIMITED")),
    )


def _number(text: str) -> float:
    found = re.match(r"\d+", text)
    return float(found[0]) if found else 0.0
