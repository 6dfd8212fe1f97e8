"""Machines without a batch system: a list of hosts, and a command that runs another one on a host.

A pilot is a process started so, such as an `ssh`. Its standard input is held open; letting go of it tells the pilot,
on the other side, to give the host back. So it does when this process dies. What is spare there, its agent judges by
its `host` source.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.batch import Limits, Machine, Order, PilotJob, PilotState
from agents.batch.commands import clean_environment

log = logging.getLogger("fallow.pilots")

NOTICE_S = 10.0
SOON_S = 30.0
"""A pilot that ends sooner with an error counts as a host that cannot be used."""

REST_S = 300.0
"""How long such a host is left alone."""


@dataclass
class _Running:
    pilot: PilotJob
    process: asyncio.subprocess.Process
    since_s: float


class Shell:
    """One pilot per host at most; pilots beyond that wait, the longest first."""

    name = "shell"

    def __init__(
        self, hosts: Sequence[str], start: str, command: Sequence[str], output: Path, base: Mapping[str, str]
    ) -> None:
        """`start` has {host} and {command} in it, such as "ssh -o BatchMode=yes {host} {command}"."""
        self.hosts, self.start, self.command, self.output = tuple(hosts), start, tuple(command), output
        self._environment = clean_environment(base, {}, ("SSH_AUTH_SOCK", "VIRTUAL_ENV"))
        self._waiting: list[PilotJob] = []
        self._running: dict[str, _Running] = {}
        self._resting: dict[str, float] = {}
        self._number = 0

    async def limits(self) -> Limits:
        """See `BatchSystem`."""
        return Limits(NOTICE_S, preemptible=True, longest_s=math.inf, step_s=1.0)

    async def look(self) -> Machine:
        """See `BatchSystem`. Waiting pilots are started on hosts that have none."""
        now_s = time.monotonic()
        self._bury(now_s)
        usable = [host for host in self.hosts if self._resting.get(host, 0.0) <= now_s]
        for host in usable:
            if self._waiting and host not in self._running:
                await self._begin(host, self._waiting.pop(0), now_s)
        running = [one.pilot for one in self._running.values()]
        idle = tuple(host for host in usable if host not in self._running)
        return Machine(len(usable), idle, pilots=(*running, *self._waiting))

    async def submit(self, order: Order) -> None:
        """See `BatchSystem`."""
        for _ in range(order.count):
            self._number += 1
            self._waiting.append(PilotJob(str(self._number), PilotState.PENDING, order.length_s))
        self._waiting.sort(key=lambda pilot: (-pilot.length_s, int(pilot.id)))

    async def cancel(self, pilots: Sequence[str]) -> None:
        """See `BatchSystem`."""
        self._waiting = [pilot for pilot in self._waiting if pilot.id not in pilots]
        for host, one in list(self._running.items()):
            if one.pilot.id in pilots:
                self._let_go(host)

    async def cancel_all(self) -> None:
        """See `BatchSystem`."""
        self._waiting.clear()
        for host in list(self._running):
            self._let_go(host)

    def _let_go(self, host: str) -> None:
        one = self._running[host]
        one.pilot = PilotJob(one.pilot.id, PilotState.ENDING, one.pilot.length_s, host)
        if one.process.stdin and not one.process.stdin.is_closing():
            one.process.stdin.close()

    async def _begin(self, host: str, pilot: PilotJob, now_s: float) -> None:
        name = f"shell-{host}-{pilot.id}"
        inside = ["env", f"FALLOW_PILOT={name}", f"FALLOW_NODE={host}", *self.command]
        inside += ["--length-s", f"{pilot.length_s:g}", "--leave-on-eof"]
        words = shlex.split(self.start.format(host=shlex.quote(host), command=shlex.quote(shlex.join(inside))))
        if "ssh" not in words[0]:  # ssh takes the remote command as one word, others as words
            words = shlex.split(self.start.format(host=shlex.quote(host), command=shlex.join(inside)))
        try:
            with (self.output / f"{host}.log").open("ab") as log_file:
                process = await asyncio.create_subprocess_exec(
                    *words,
                    stdin=subprocess.PIPE,
                    stdout=log_file,
                    stderr=log_file,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            log.warning("%s: %s cannot be run: %s", host, words[0], error.strerror)
            self._resting[host] = now_s + REST_S
            return
        self._running[host] = _Running(PilotJob(pilot.id, PilotState.RUNNING, pilot.length_s, host), process, now_s)

    def _bury(self, now_s: float) -> None:
        """Forget pilots that have ended; a host where one failed at once is left alone for a while."""
        for host, one in list(self._running.items()):
            if one.process.returncode is None:
                continue
            del self._running[host]
            if one.process.returncode and now_s - one.since_s < SOON_S:
                log.warning("%s: its pilot ended with status %d: see its log", host, one.process.returncode)
                self._resting[host] = now_s + REST_S
