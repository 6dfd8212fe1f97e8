"""The process behind `fallow pilots`: asks for work, looks at the machine, submits and withdraws pilots."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agents.batch import BatchSystem, Limits, Machine, PilotState, Refused, Unreachable
from agents.pilots import errand, lengths
from agents.pilots.demand import NoAnswer
from agents.pilots.early_ends import EarlyEnds
from agents.pilots.errand import Errand
from agents.pilots.lengths import IdleWatch
from agents.pilots.pacing import Pace
from agents.pilots.policy import Bag, Decision, Work, decide

log = logging.getLogger("fallow.pilots")

WARM_UP_S = 10.0
"""What a pilot loses before its node is of use; only the choice among lengths depends on it."""

_LEAVE_S = 20.0


class Asker(Protocol):
    """Who knows what work there is."""

    async def ask(self) -> Work:
        """The work there is. Raises `NoAnswer` for now, `NotAllowed` for good."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What this process was told: its folder, the bag, how many of the bag's lengths to use (0: all), its rhythm.

    `notice_s` overrules what the batch system says of its notice.
    """

    folder: Path
    errand: Errand
    bag: Bag
    learn: int
    ask_s: float
    pace: Pace
    notice_s: float | None = None


class Pilots:
    """One site's pilots on one machine. Only `_turn` speaks to the batch system."""

    def __init__(self, system: BatchSystem, asker: Asker, plan: Plan) -> None:
        self.system, self.asker, self.plan = system, asker, plan
        self.watch, self.early = IdleWatch(), EarlyEnds()
        self.machine: Machine | None = None
        self.problem, self.reason = "", ""
        self._pace = plan.pace
        self._limits: Limits | None = None
        self._work: Work | None = None
        self._may_have_pilots = True  # those of an earlier process of this site
        self._noted = ""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, then withdraw all pilots. Raises `NotAllowed`."""
        while not stop.is_set():
            await self._turn(time.monotonic())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self.plan.ask_s)
        self._mark(False)
        deadline_s = time.monotonic() + _LEAVE_S
        while self._may_have_pilots and time.monotonic() < deadline_s:
            await self._withdraw(time.monotonic())
            await asyncio.sleep(0.5)

    async def _turn(self, now_s: float) -> None:
        before = self._work
        try:
            self._work = await self.asker.ask()
        except NoAnswer as silence:
            self._say(f"the scheduler does not answer: {silence}")
            return  # nothing new is submitted, nothing is withdrawn: it may be back in a moment
        if before is not None and before.present != self._work.present:
            self._pace = self._pace.hurried(now_s)
        had_work = errand.is_wanted(self.plan.folder)
        self._mark(self._work.nodes > 0)
        if not self._work.nodes:
            if self._may_have_pilots and (had_work or now_s >= self._pace.next_s):
                await self._withdraw(now_s)
        elif not had_work or now_s >= self._pace.next_s:
            await self._tend(now_s)
        self._note()

    def _mark(self, wanted: bool) -> None:
        try:
            errand.say_wanted(self.plan.folder, wanted)
        except OSError as error:
            self._say(f"cannot write to {self.plan.folder}: {error.strerror}")

    # --- the machine ---------------------------------------------------------------------------------------------

    async def _tend(self, now_s: float) -> None:
        """Look, decide, act."""
        assert self._work is not None
        try:
            self._limits = self._limits or await self._learn_limits()
            before, self.machine = self.machine, await self.system.look()
            self._watch_idle(now_s, self.machine)
            self.early.look(self.machine, self._work.present)
            decision = decide(self.machine, self._work, self._bag(), self._limits)
            await self._carry_out(self._on_trial(decision) if self.early.too_many else decision)
        except (Unreachable, Refused) as problem:
            self._fail(problem, now_s)
            return
        if self.early.too_many:
            self._pace = self._pace.silent(now_s)
            ended = f"the last {self.early.in_a_row} pilots ended before their agents reached the scheduler"
            self._say(f"{ended}: one is tried at a time until that is mended; see the logs in {self.plan.folder}/log")
            return
        self._say("", decision.reason)
        same = before is not None and before.pilots == self.machine.pilots
        quiet = same and not decision.submit and not decision.cancel
        self._pace = self._pace.quiet(now_s) if quiet else self._pace.changed(now_s)

    def _on_trial(self, decision: Decision) -> Decision:
        """One pilot at a time, the shortest, instead of what is to be submitted."""
        tried = () if self.early.on_trial() else decision.submit[-1:]
        return replace(decision, submit=tuple(replace(order, count=1) for order in tried))

    async def _learn_limits(self) -> Limits:
        limits = await self.system.limits()
        if self.plan.notice_s is not None:
            limits = replace(limits, notice_s=self.plan.notice_s)
        replace(self.plan.errand, notice_s=limits.notice_s).write(self.plan.folder)
        return limits

    def _watch_idle(self, now_s: float, machine: Machine) -> None:
        ours = {p.node for p in machine.pilots if p.state is not PilotState.PENDING}
        self.watch.look(now_s, {*machine.idle, *ours})

    def _bag(self) -> Bag:
        bag = self.plan.bag
        if not self.plan.learn:
            return bag
        learned = lengths.learn(self.watch.intervals_s, self.plan.learn, WARM_UP_S, bag.lengths_s)
        return replace(bag, lengths_s=learned)

    async def _carry_out(self, decision: Decision) -> None:
        if decision.cancel:
            log.info("withdrawing %d pilots", len(decision.cancel))
            await self.system.cancel(decision.cancel)
            self.early.withdrawn(decision.cancel)
        for order in decision.submit:
            log.info("submitting %d pilots of %.0f min", order.count, order.length_s / 60)
            self._may_have_pilots = True
            await self.system.submit(order)
            self.early.submitted(order.count)

    async def _withdraw(self, now_s: float) -> None:
        """Cancel everything, and look whether that is so."""
        try:
            await self.system.cancel_all()
            self.early = EarlyEnds()
            self.machine = await self.system.look()
        except (Unreachable, Refused) as problem:
            self._fail(problem, now_s)
            return
        live = [p for p in self.machine.pilots if p.state is not PilotState.ENDING]
        self._may_have_pilots = bool(live)
        self._pace = self._pace.changed(now_s) if live else replace(self._pace, next_s=0.0, pause_s=0.0)
        self._say("", f"withdrawing {len(live)} pilots" if live else "there is no work, so there are no pilots")

    def _fail(self, problem: Exception, now_s: float) -> None:
        self._limits = None  # it may be another machine when it answers again
        self._pace = self._pace.silent(now_s)
        self._say(str(problem))

    # --- what is told --------------------------------------------------------------------------------------------

    def _say(self, problem: str, reason: str = "") -> None:
        if problem and problem != self.problem:
            log.warning("%s", problem)
        elif reason and reason != self.reason:
            log.info("%s", reason)
        self.problem, self.reason = problem, reason

    def _note(self) -> None:
        """Keep `status.json` up to date; a full disk is no reason to stop."""
        said = json.dumps(self.status(), indent=1)
        if said != self._noted:
            with contextlib.suppress(OSError):
                partial = self.plan.folder / "status.json.partial"
                partial.write_text(said + "\n")
                partial.replace(self.plan.folder / "status.json")
                self._noted = said

    def status(self) -> dict[str, object]:
        """What `fallow pilots --status` shows."""
        machine, work = self.machine or Machine(0), self._work or Work(0)
        counts = {str(state): len(machine.in_state(state)) for state in PilotState}
        return {
            "site": self.plan.errand.site,
            "system": self.system.name,
            "nodes_wanted": work.nodes,
            "nodes": machine.nodes,
            "nodes_idle": len(machine.idle),
            **counts,
            "lengths_min": [s / 60 for s in self._bag().lengths_s],
            "notice_s": self._limits.notice_s if self._limits else None,
            "problem": self.problem,
            "reason": self.reason,
        }
