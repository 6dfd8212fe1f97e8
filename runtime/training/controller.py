"""Runs one train job at a site: brings its workers to the assignment, and back on their feet after a loss.

Everything that happens (an assignment, a worker's event, a node's end) goes through one inbox; after each, `decide`
says what to do. Workers train on whether or not a controller listens, so one that comes new finds them and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Any

from runtime.site.controller import Actors, Assignment, LeaseKey, Reports, WorkerSlot
from runtime.training import switches
from runtime.training.checkpoints import root_of
from runtime.training.decisions import Decision, Go, View, Wait, all_items, decide, leftover
from runtime.training.flight import Flight, Landing
from runtime.training.generation import Generation, Switch, form
from runtime.training.hangs import HangWatch
from runtime.training.link import Link
from runtime.training.progress import Progress
from runtime.training.pulse import Event
from runtime.training.shares import Speeds

TICK_S = 0.25
STUCK_S = 30.0
"""A worker that does not come out of a broken switch or generation within this time is killed."""

SETTLED_STEPS = 2
"""Steps of a generation after which a worker that falls silent is looked at more closely."""

log = logging.getLogger(__name__)


class TrainController:
    """See `runtime.site.controller.JobController`."""

    def __init__(self, job: str, actors: Actors, reports: Reports, folder: Path) -> None:
        self._job, self._actors, self._reports, self._folder = job, actors, reports, folder
        self._inbox: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._links: dict[str, Link] = {}
        self._target: Assignment | None = None
        self._generation: Generation | None = None
        self._flight: Flight | None = None
        self._landing: Landing | None = None  # of a switch that has not been reported yet
        self._reached: Assignment | None = None
        self._last_number = 0
        self._broken_since_s: float | None = None
        self._progress = Progress(job, reports, folder)
        self._hangs, self._speeds = HangWatch(), Speeds()
        self._output, self._unreachable = "", ""  # the finished model; what was said of the checkpoints' place
        self._ended = False

    # --- JobController --------------------------------------------------------------------------------------------

    async def assign(self, assignment: Assignment) -> None:
        """Take up a newer assignment."""
        self._put("assign", assignment)

    async def node_gone(self, lease: LeaseKey) -> None:
        """Its workers are lost."""
        self._put("gone", lease)

    async def end(self, cause: str) -> None:
        """End the job as cancelled."""
        self._put("end", cause)

    async def detach(self) -> None:
        """Let go; workers train on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for link in self._links.values():
            link.close()

    # --- the loop -----------------------------------------------------------------------------------------------

    def _put(self, kind: str, what: Any) -> None:
        self._inbox.put_nowait((kind, what))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"train {self._job}")

    async def _run(self) -> None:
        while not self._ended:
            try:
                async with asyncio.timeout(TICK_S):
                    kind, what = await self._inbox.get()
            except TimeoutError:
                kind, what = "tick", None
            try:
                await self._take(kind, what)
                await self._lose_hung()
                while self._inbox.empty() and await self._react():
                    pass
            except Exception:
                log.exception("job %s: after %s", self._job, kind)
                await self._end("failed", "the job's controller failed: see the site's log")

    async def _take(self, kind: str, what: Any) -> None:
        match kind:
            case "assign":
                self._take_assignment(what)
            case "gone":
                for worker, link in self._links.items():
                    if link.slot.lease == what and link.phase != "lost":
                        await self._lost(worker, "its node is gone")
            case "end":
                await self._end("cancelled", what)
            case "event":
                await self._take_event(*what)

    def _take_assignment(self, assignment: Assignment) -> None:
        if self._target is not None and assignment.revision <= self._target.revision:
            return
        self._target = assignment
        self._progress.configure(assignment.spec)
        for slot in assignment.workers:
            self._ensure_link(slot)

    def _ensure_link(self, slot: WorkerSlot) -> None:
        if slot.worker in self._links:
            return
        assert self._target is not None
        spec_json = self._target.spec.model_dump_json()
        self._links[slot.worker] = Link(
            slot, self._actors, spec_json, self._folder, lambda worker, event: self._put("event", (worker, event))
        )
        self._reports.worker(self._job, slot, "starting")

    # --- what workers say ---------------------------------------------------------------------------------------

    async def _take_event(self, worker: str, event: Event) -> None:
        link = self._links.get(worker)
        if link is None or link.phase == "lost":
            return
        match event["kind"]:
            case "adopted":
                await self._adopt(link, event["status"])
            case "lost":
                await self._lost(worker, event["reason"])
            case "ready":
                link.phase = "ready"
            case "switched":
                self._switched(link)
            case "finishing":
                link.is_finishing = True
            case "left" | "parked":
                link.phase = event["kind"]
            case "broken":
                link.phase = "broken"
                self._reports.log(self._job, worker, [f"training broke off: {event['reason']}"])
            case "step":
                self._progress.step(event, len(self._generation.members) if self._generation else 0)
            case "speeds":
                self._take_speeds(event["speeds"])
            case "evaluated":
                self._progress.evaluated(event)
            case "warning":
                self._reports.log(self._job, worker, [event["text"]])
            case "failed":
                await self._end("failed", event["message"])
            case "finished":
                link.phase, self._output = "finished", event["output"]
                await self._end_if_finished()
        if self._flight is not None:
            self._flight.hear(worker, event)

    async def _end_if_finished(self) -> None:
        """Once the first in rank says so, who has told of all steps before; or anyone, if that one is lost."""
        first = self._generation.workers[0] if self._generation else ""
        if self._view().phase(first) in ("finished", "lost"):
            await self._end("done", "", self._output)

    def _take_speeds(self, speeds: dict[str, float]) -> None:
        for worker, speed in self._speeds.hear(speeds).items():
            told = f"works at {speed:.2f} of the others' speed: it gets less of each batch, and keeps fewer experts"
            self._reports.log(self._job, worker, [told])
            if worker in self._links:
                self._reports.worker(self._job, self._links[worker].slot, "slow", told)

    def _switched(self, link: Link) -> None:
        link.phase, link.is_finishing = "training", False
        link.ear.begin()
        self._reports.worker(self._job, link.slot, "running", str(link.warm_up))

    async def _adopt(self, link: Link, status: Any) -> None:
        """A worker was started, or found running as an earlier controller left it."""
        order, generation = status.order, status.generation
        self._last_number = max(self._last_number, order.number if order else 0, generation.number if generation else 0)
        link.phase = "starting" if status.phase == "preparing" else status.phase
        if generation is None or order is None:
            return
        if self._generation is None or generation.number > self._generation.number:
            self._generation = generation
            for member in generation.members:
                self._ensure_link(member.slot)
        if order.number > generation.number and self._flight is None:
            self._flight = Flight(order, is_sent=False)  # a switch that an earlier controller began
        if order.number == generation.number:  # those whom it left behind, and who may still be there
            for leaver in set(order.participants) - set(generation.workers) - self._links.keys():
                await self._actors.stop(leaver)

    async def _lost(self, worker: str, reason: str) -> None:
        link = self._links[worker]
        link.phase = "lost"
        if self._flight is not None:
            self._flight.hear(worker, {"kind": "lost"})
        self._reports.worker(self._job, link.slot, "lost", reason)
        if self._generation is not None and worker in self._generation.workers:
            await switches.call_off(self._generation.number, self._generation.workers, self._links)
        await link.dismiss()  # if it only seems dead, it must not come back
        if any(other.phase == "finished" for other in self._links.values()):
            await self._end_if_finished()

    async def _lose_hung(self) -> None:
        """Only of a generation that trains: a first step loads code, and a worker that joins may be alone in it."""
        members = self._generation.workers if self._generation and self._progress.since_switch > SETTLED_STEPS else ()
        judged = [w for w in members if (link := self._links.get(w)) and link.phase == "training"]
        is_finishing = any(self._links[worker].is_finishing for worker in judged)
        hung = self._hangs.look({w: link.ear for w, link in self._links.items()}, () if is_finishing else judged)
        for worker in hung:
            silent_s = self._links[worker].ear.silence.now_s
            await self._lost(worker, f"it hangs: it has said nothing for {silent_s:.1f} s, the others have")

    # --- what to do ---------------------------------------------------------------------------------------------

    async def _react(self) -> bool:
        """Do the next thing. True if more may be to do at once."""
        if self._ended or self._target is None:
            return False
        if self._flight is not None:
            return await self._follow_flight(self._flight)
        await self._kill_stuck()
        decision = decide(self._view())
        if isinstance(decision, Go):
            await self._begin(decision)
            return False
        await self._settle(decision)
        return False

    def _view(self) -> View:
        assert self._target is not None
        assert self._target.spec.train is not None
        model = self._target.spec.train.model
        return View(
            target=self._target.workers,
            generation=self._generation,
            phases={worker: link.phase for worker, link in self._links.items()},
            ready_s={worker: link.ready_s for worker, link in self._links.items()},
            experts=all_items(model.expert_layers, model.experts) if model is not None else (),
            min_width=self._target.spec.min_width,
            now_s=time.time(),
            deadline_s=self._target.deadline_s,
            stragglers=self._speeds.stragglers,
        )

    async def _begin(self, go: Go) -> None:
        """Order a switch to every participant."""
        number = self._last_number = self._last_number + 1
        generation = form(number, go.slots, self._speeds.usual)
        try:
            switch = await (self._graceful(go, generation) if go.is_graceful else self._recovery(go, generation))
            self._unreachable = ""
        except switches.CheckpointsUnreachable as error:
            if str(error) != self._unreachable:  # it is tried again at every tick
                self._unreachable = str(error)
                self._reports.log(self._job, "", [self._unreachable])
            return
        except Exception as error:  # a worker died while it was asked: its link says so next
            log.info("job %s: switch %d not begun: %s", self._job, number, error)
            return
        self._flight = Flight(switch)
        await switches.send(switch, self._links)

    async def _graceful(self, go: Go, generation: Generation) -> Switch:
        assert self._generation is not None
        return await switches.graceful_switch(go, generation, self._generation, self._links, self._cause_of(go))

    async def _recovery(self, go: Go, generation: Generation) -> Switch:
        view = self._view()
        origin = await switches.find_origin(self._links, view.experts, self._checkpoints)
        if origin.problems:
            self._reports.log(self._job, "", list(origin.problems))
        is_loss = self._generation is not None and any(view.phase(w) == "lost" for w in self._generation.workers)
        step = origin.source.step
        if is_loss and not origin.holders:
            lost = [w for w in view.generation.workers if view.phase(w) == "lost"] if view.generation else []
            self._reports.log(self._job, "", [switches.told_of_both_copies(lost, origin.source)])
        cause = "loss" if is_loss or self._progress.is_beyond(step) else self._target_cause()
        switch = await switches.recovery_switch(go, generation, origin, self._links, cause)
        self._progress.back_to(step, cause)
        return switch

    def _cause_of(self, go: Go) -> str:
        """Once the job is what it was told to be, it changes only for those who are slow."""
        present = self._generation.workers if self._generation else ()
        is_same = {slot.worker for slot in go.slots} == set(present)
        is_settled = self._reached is not None and self._reached is self._target
        return "straggler" if is_same and is_settled and go.then == "train" else self._target_cause()

    @property
    def _checkpoints(self) -> str:
        assert self._target is not None
        assert self._target.spec.train is not None
        return root_of(self._target.spec.train, self._folder)

    def _target_cause(self) -> str:
        return self._target.cause if self._target else ""

    async def _follow_flight(self, flight: Flight) -> bool:
        if not flight.is_sent:
            return await switches.resend(flight, self._links)
        if flight.is_complete:
            self._flight, self._generation = None, flight.switch.generation
            landing = flight.landing()
            if landing.stall_s:
                self._reports.log(self._job, "", [str(landing)])
            self._landing = landing.after(self._landing)
            self._progress.new_generation()
            return True
        if not flight.is_broken:
            return False
        if not flight.is_cancelled:
            flight.is_cancelled = True
            await switches.call_off(flight.switch.number, flight.switch.participants, self._links)
        busy = [w for w in flight.switch.participants if self._view().phase(w) == "training"]
        if busy and not flight.is_overdue:
            return False
        for worker in busy:
            await self._lost(worker, "it did not come out of a broken switch")
        self._flight = None
        self._generation = flight.generation_after(self._generation)
        return True

    async def _kill_stuck(self) -> None:
        """Members of a broken generation notice within a step; one that does not is killed."""
        members = self._generation.workers if self._generation else ()
        phases = [self._view().phase(worker) for worker in members]
        if not ("training" in phases and set(phases) != {"training"}):
            self._broken_since_s = None
            return
        self._broken_since_s = self._broken_since_s or time.monotonic()
        if time.monotonic() - self._broken_since_s > STUCK_S:
            for worker, phase in zip(members, phases, strict=True):
                if phase == "training":
                    await self._lost(worker, "it did not notice that its peers are gone")

    async def _settle(self, decision: Decision) -> None:
        """Nothing to switch: let go of workers that are not needed, and say what was reached."""
        assert self._target is not None
        if self._landing is not None and not self._is_safe_to_let_go():
            return
        for worker in leftover(self._links, (s.worker for s in self._target.workers), self._present()):
            await self._let_go(worker)
        if not self._links:
            self._generation = None
        if isinstance(decision, Wait) and decision.is_reached:
            self._say_reached(self._target)
        elif self._landing is not None and self._landing.cause == "loss" and self._reached is not None:
            self._say_reached(self._reached)  # the survivors train; what the target asks for beyond is yet to come

    def _present(self) -> Generation | None:
        """The generation, unless the job is parked without any workers to have."""
        return self._generation if self._target and self._target.workers else None

    def _is_safe_to_let_go(self) -> bool:
        """Leavers hold the only other copy of what they gave away until the new generation's first snapshot."""
        deadline_s = self._target.deadline_s if self._target else None
        is_late = deadline_s is not None and time.time() > deadline_s - 1.0
        is_parked = self._generation is not None and self._view().phase(self._generation.workers[0]) != "training"
        return self._progress.since_switch >= 2 or is_late or is_parked

    async def _let_go(self, worker: str) -> None:
        link = self._links.pop(worker)
        if link.phase != "lost":
            await link.dismiss()
            self._reports.worker(self._job, link.slot, "left")

    def _say_reached(self, target: Assignment) -> None:
        landing, self._landing = self._landing, None
        if landing is None and self._reached is not None and self._reached.revision >= target.revision:
            return
        self._reached = target
        landing = landing or Landing(cause=target.cause)
        self._reports.reached(target, landing.stall_s, landing.bytes_moved, landing.at_step, landing.cause)

    async def _end(self, outcome: str, message: str, output: str = "") -> None:
        if self._ended:
            return
        self._ended = True
        self._progress.flush(len(self._generation.members) if self._generation else 0)
        for link in self._links.values():  # not "left": a worker that leaves a job that goes on would be replaced
            await link.dismiss()
        self._links.clear()
        self._reports.ended(self._job, outcome, message, output)
