"""Slurm, by its own commands, as an ordinary user of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents.batch import Limits, Machine, Order, Refused, slurm_words
from agents.batch.commands import Commands, clean_environment
from agents.batch.script import PilotScript

_UNREACHABLE = (
    "unable to contact slurm controller",
    "socket timed out",
    "connection refused",
    "zero bytes were transmitted or received",
    "slurm backup controller in standby mode",
    "communication connection failure",
    "resource temporarily unavailable",
    "unexpected message received",
    "munge",
)
_GONE = ("invalid job id", "job/step already completing or completed", "already completed")
_AT_ONCE = 200
"""Ids in one scancel: a command line has its limits."""


@dataclass(frozen=True, slots=True)
class SlurmPlace:
    """Where pilots go. Empty: as Slurm chooses. `options` are further options of sbatch, such as --gres=gpu:4."""

    partition: str = ""
    qos: str = ""
    account: str = ""
    constraint: str = ""
    exclusive: bool = True
    options: tuple[str, ...] = ()


def batch_script(script: PilotScript, length_s: float) -> str:
    """What sbatch is given. It names files, and holds no secret.

    The agent runs under srun: only job steps hear SIGTERM when the grace begins.
    """
    return f"#!/bin/sh\nexec srun --ntasks=1 --cpu-bind=none --kill-on-bad-exit=0 {script.line(length_s)}\n"


class Slurm:
    """One place of one Slurm machine. `look` costs two commands, `limits` two, `submit` and `cancel_all` one each."""

    name = "slurm"

    def __init__(self, place: SlurmPlace, script: PilotScript, base: Mapping[str, str]) -> None:
        self.place, self.script = place, script
        more = {"SLURM_TIME_FORMAT": "%s", **script.environment}
        self.commands = Commands(clean_environment(base, more, ("SLURM_CONF",)), _UNREACHABLE)

    async def limits(self) -> Limits:
        """See `BatchSystem`."""
        config = slurm_words.settings(await self.commands.run("scontrol", "show", "config"))
        named = (self.place.partition,) if self.place.partition else ()
        shown = await self.commands.run("scontrol", "--oneliner", "show", "partition", *named)
        lines = [slurm_words.settings(line) for line in shown.splitlines() if line.strip()]
        chosen = [line for line in lines if self.place.partition or line.get("default") == "YES"] or lines
        if not chosen:
            raise Refused("scontrol shows no partition that this user may see")
        return slurm_words.limits(config, chosen[0])

    async def look(self) -> Machine:
        """See `BatchSystem`."""
        here = (f"--partition={self.place.partition}",) if self.place.partition else ()
        shown = await self.commands.run("sinfo", "--noheader", "--Node", f"--format={slurm_words.NODE_FORMAT}", *here)
        states = slurm_words.node_states(shown)
        if not states:
            raise Refused(f"sinfo shows no node of partition {self.place.partition or '(any)'}: is it gone?")
        shown = await self.commands.run("squeue", "--noheader", "--array", f"--format={slurm_words.QUEUE_FORMAT}")
        rows = slurm_words.queue(shown)
        return slurm_words.machine(rows, states, self.script.user, self.script.name, time.time())

    async def submit(self, order: Order) -> None:
        """See `BatchSystem`. All pilots of the order are one job array, and so one command."""
        script = self.script
        command = [
            *("sbatch", "--parsable", f"--job-name={script.name}", "--nodes=1", "--ntasks=1", "--no-requeue"),
            *(f"--time={slurm_words.limit_text(order.length_s)}", f"--nice={order.nice}"),
            *(
                f"--chdir={script.folder}",
                f"--output={script.folder}/log/%N.log",
                "--open-mode=append",
                "--input=/dev/null",
            ),
            *(() if order.count == 1 else (f"--array=1-{order.count}",)),
            *((f"--signal=TERM@{script.warning_s:.0f}",) if script.warning_s else ()),
            *self._place(),
        ]
        await self.commands.run(*command, stdin=batch_script(script, order.length_s))

    def _place(self) -> list[str]:
        place = self.place
        named = {name: getattr(place, name) for name in ("partition", "qos", "account", "constraint")}
        chosen = [f"--{name}={value}" for name, value in named.items() if value]
        return [*chosen, *(("--exclusive",) if place.exclusive else ()), *place.options]

    async def cancel(self, pilots: Sequence[str]) -> None:
        """See `BatchSystem`. Pilots that have ended meanwhile are no reason to complain."""
        for first in range(0, len(pilots), _AT_ONCE):
            try:
                await self.commands.run("scancel", *pilots[first : first + _AT_ONCE])
            except Refused as refusal:
                if not any(words in str(refusal).lower() for words in _GONE):
                    raise

    async def cancel_all(self) -> None:
        """See `BatchSystem`."""
        await self.commands.run("scancel", f"--name={self.script.name}", f"--user={self.script.user}")
