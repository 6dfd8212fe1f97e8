"""OpenPBS, by its own commands, as an ordinary user of it.

Written after the OpenPBS 23.06 reference guide and tested on the JSON that it documents, not on a running server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.batch import Limits, Machine, Order, PilotJob, PilotState, Refused
from agents.batch.commands import Commands, clean_environment
from agents.batch.script import PilotScript
from agents.batch.slurm_words import duration_s

_UNREACHABLE = ("cannot connect to server", "connection refused", "connection timed out", "end of file")
_GONE = ("unknown job id", "job has finished")
_KILL_DELAY_S = 10.0
"""OpenPBS's default between SIGTERM and SIGKILL, where a queue sets no kill_delay."""

_STATES = {
    "Q": PilotState.PENDING,
    "H": PilotState.PENDING,
    "W": PilotState.PENDING,
    "T": PilotState.PENDING,
    "R": PilotState.RUNNING,
    "S": PilotState.RUNNING,
    "E": PilotState.ENDING,
}
_TOP_PRIORITY = 0
_LOWEST_PRIORITY = -1024


@dataclass(frozen=True, slots=True)
class PbsPlace:
    """Where pilots go. Empty: as the server chooses."""

    queue: str = ""
    account: str = ""
    options: tuple[str, ...] = ()


class OpenPbs:
    """One queue of one OpenPBS server. A pilot is a job of its own: arrays may not be declared not rerunnable."""

    name = "openpbs"

    def __init__(self, place: PbsPlace, script: PilotScript, base: Mapping[str, str]) -> None:
        self.place, self.script = place, script
        environment = clean_environment(base, script.environment, ("PBS_CONF_FILE", "PBS_SERVER"))
        self.commands = Commands(environment, _UNREACHABLE)

    async def limits(self) -> Limits:
        """See `BatchSystem`. Whether pilots are preempted cannot be asked: it is assumed that they are not."""
        shown = await self.commands.run("qstat", "-Q", "-f", "-F", "json", *filter(None, (self.place.queue,)))
        return queue_limits(_json(shown))

    async def look(self) -> Machine:
        """See `BatchSystem`."""
        nodes = _json(await self.commands.run("pbsnodes", "-a", "-F", "json"))
        jobs = _json(await self.commands.run("qstat", "-f", "-F", "json"))
        return machine(jobs, nodes, self.script.user, self.script.name, time.time())

    async def submit(self, order: Order) -> None:
        """See `BatchSystem`."""
        place, script = self.place, self.script
        priority = max(_LOWEST_PRIORITY, _TOP_PRIORITY - order.nice)
        hours, rest = divmod(int(order.length_s), 3600)
        walltime = f"walltime={hours:02d}:{rest // 60:02d}:{rest % 60:02d}"
        command = [
            *("qsub", "-N", script.name, "-r", "n", "-l", "select=1", "-l", "place=excl", "-l", walltime),
            *("-p", str(priority), "-j", "oe", "-o", str(script.folder / "log"), "-V"),
            *(("-q", place.queue) if place.queue else ()),
            *(("-A", place.account) if place.account else ()),
            *place.options,
        ]
        text = f"#!/bin/sh\nexec {script.line(order.length_s)}\n"
        for _ in range(order.count):
            await self.commands.run(*command, stdin=text)

    async def cancel(self, pilots: Sequence[str]) -> None:
        """See `BatchSystem`."""
        try:
            await self.commands.run("qdel", *pilots)
        except Refused as refusal:
            if not any(words in str(refusal).lower() for words in _GONE):
                raise

    async def cancel_all(self) -> None:
        """See `BatchSystem`."""
        found = await self.commands.run("qselect", "-u", self.script.user, "-N", self.script.name)
        if ids := found.split():
            await self.cancel(ids)


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise Refused(f"OpenPBS printed no JSON ({error}): Fallow needs version 18 or later") from error
    assert isinstance(found, dict)
    return found


def queue_limits(shown: Mapping[str, Any]) -> Limits:
    """What `qstat -Q -f -F json` says of a queue. Raises Refused for one that takes or starts no jobs."""
    queues = shown.get("Queue", {})
    if not queues:
        raise Refused("qstat shows no queue that this user may use")
    name, queue = sorted(queues.items())[0]
    if "False" in (str(queue.get("enabled", True)), str(queue.get("started", True))):
        raise Refused(f"queue {name} is not enabled, or not started")
    longest = str(queue.get("resources_max", {}).get("walltime", ""))
    return Limits(
        notice_s=float(queue.get("kill_delay", _KILL_DELAY_S)),
        preemptible=False,
        longest_s=duration_s(longest) if longest else float("inf"),
        step_s=1.0,
    )


def machine(jobs: Mapping[str, Any], nodes: Mapping[str, Any], user: str, name: str, now_s: float) -> Machine:
    """What `qstat -f -F json` and `pbsnodes -a -F json` show together."""
    pilots, starts, waiting = [], [], 0
    for job, said in sorted(jobs.get("Jobs", {}).items()):
        state = _STATES.get(said.get("job_state", ""))
        if state is None:
            continue
        if said.get("Job_Name") == name and str(said.get("Job_Owner", "")).partition("@")[0] == user:
            limit_s = duration_s(str(said.get("Resource_List", {}).get("walltime", "")))
            pilots.append(PilotJob(job, state, limit_s, str(said.get("exec_host", "")).partition("/")[0]))
        elif state is PilotState.PENDING:
            waiting += 1
            starts += [float(at) for at in (said.get("estimated", {}).get("start_time"),) if _is_number(at)]
    states = {node: str(said.get("state", "")) for node, said in nodes.get("nodes", {}).items()}
    return Machine(
        nodes=sum(not _is_out(state) for state in states.values()),
        idle=tuple(sorted(n for n, state in states.items() if state == "free" and not nodes["nodes"][n].get("jobs"))),
        leaving=tuple(sorted(n for n, state in states.items() if "offline" in state or "maintenance" in state)),
        pilots=tuple(pilots),
        waiting=waiting,
        window_s=max(0.0, min(starts) - now_s) if starts else None,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and value.isdigit())


def _is_out(state: str) -> bool:
    return any(word in state for word in ("offline", "down", "unknown", "stale", "maintenance", "unresolvable"))
