"""The node agent: the thin shell around `decide` and `offer` that knows the clock, the stream and the raylet."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agents import control_socket, messages, process_tree, raylet
from agents.connection import Connection, Peer
from agents.decide import (
    Action,
    EndRaylet,
    Granted,
    Happening,
    Hold,
    JoinAsked,
    LeaveAsked,
    Phase,
    Reclaimed,
    SayLeft,
    SayReclaim,
    StartRaylet,
    step,
)
from agents.folder import OwnersWord
from agents.footprint import Footprint
from agents.lending import Lending
from agents.offer import Objection, due_reclaim, offer
from agents.probes import Device, Probe
from agents.raylet import RayletOptions
from agents.spare import Judgement, Now, Source
from agents.spare.asking import Asking, off_loop
from protocol import agent_pb2 as pb

log = logging.getLogger("fallow.agent")

HEARTBEAT_S = 3.0
_STABLE_S = 60.0
_GOODBYE_S = 2.0


def read_clock() -> Now:
    """This instant on both clocks."""
    return Now(time.monotonic(), time.time())


@dataclass(frozen=True, slots=True)
class Node:
    """What this agent is and has."""

    name: str
    site: str
    address: str
    version: str
    probe: Probe
    devices: tuple[Device, ...]
    probe_failures: tuple[str, ...] = ()


class Agent:
    """One node's agent. Everything happens on one event loop; only `_happen` changes the lease.

    Invariant: a raylet of ours runs only while `hold` is RUNNING, DRAINING or STOPPING, and `lending` has it.
    """

    def __init__(
        self,
        node: Node,
        sources: Sequence[Source],
        peer: Peer,
        options: RayletOptions,
        grace_s: float,
        look_s: float = 2.0,
        clock: Callable[[], Now] = read_clock,
    ) -> None:
        self.node, self.options = node, options
        self.asking = Asking(sources, tuple(device.id for device in node.devices))
        self.grace_s, self.look_s, self.clock = grace_s, look_s, clock
        self.folder = options.folder
        self.instance = uuid.uuid4().hex
        self.hold = Hold()
        self.lending = Lending(options, self._raylet_started, self._happen)
        self.judgement = Judgement((), "agent", "has not looked yet")
        self.connection = Connection(peer, self._opening, self._command)
        self.last_left: SayLeft | None = None
        self.word = OwnersWord(self.folder)
        self._meter = (0, 0.0, 0.0)  # epoch, joules at its first and at its newest reading
        self._metering: asyncio.Task[None] | None = None
        self._leaving = False
        self._ended = asyncio.Event()
        self._footprint = Footprint()
        self._last_report = pb.NodeReport()

    # --- life ----------------------------------------------------------------------------------------------------

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Work until the owner ends it by SIGTERM or SIGINT. Raises `Refused` if the scheduler will not have it."""
        process_tree.adopt_orphans()
        strays = await off_loop(lambda: raylet.clear(self.folder))
        if strays:
            log.warning("killed %d processes that an earlier agent had left", strays)
        await self._look()
        server = await control_socket.serve(self.folder / "control.sock", self)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminated)
        dialling = asyncio.create_task(self.connection.run())
        others = (self._ended.wait(), self._looking(), self._beating())
        tasks = [dialling, *(asyncio.create_task(work) for work in others)]
        ready = asyncio.create_task(self._ready(on_ready))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a refusal, or a mistake of ours: then the keeper gives the node back
            self.connection.finish()
            await asyncio.wait({dialling}, timeout=_GOODBYE_S if self.connection.connected else 0.0)
        finally:
            server.close()
            for task in (*tasks, ready):
                task.cancel()
            await asyncio.gather(*tasks, ready, return_exceptions=True)

    async def _ready(self, on_ready: Callable[[], None]) -> None:
        await self.connection.accepted.wait()
        log.info("node %s is registered", self.node.name)
        try:
            on_ready()
        except OSError as error:
            log.error("cannot write the ready file: %s", error)

    async def _looking(self) -> None:
        while True:
            await asyncio.sleep(self.look_s)
            await self._look()

    async def _look(self) -> None:
        """Ask the sources, and reclaim for the owner where they say so."""
        self.judgement = await self.asking.judge(self.clock())
        if self.hold.epoch and (self._metering is None or self._metering.done()):
            self._metering = asyncio.create_task(self._read_meter())  # a driver that hangs must not hold up the look
        if self.hold.phase is Phase.RUNNING:
            self.lending.expect_end(self.judgement.ends_at)
        self._reclaim_if_due()
        self._report()

    async def _read_meter(self) -> None:
        """What the lent devices have drawn since the lease began."""
        epoch, devices = self.hold.epoch, self.hold.devices
        now_j = await off_loop(lambda: self.node.probe.energy_j(devices))
        self._meter = (epoch, self._meter[1] if self._meter[0] == epoch else now_j, now_j)

    def _reclaim_if_due(self) -> None:
        if self.hold.phase in (Phase.GRANTED, Phase.RUNNING):
            due = due_reclaim(self._offer(), self.hold.devices, self.clock().mono_s)
            if due:
                self._happen(Reclaimed(*due))

    async def _beating(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._report(beat=True)

    def _terminated(self) -> None:
        """A second signal means: at once. Not so in a batch job, where the first one comes several times."""
        grace_s = 0.0 if self._leaving and not self.options.shielded else self.grace_s
        if not self._leaving or grace_s < self.grace_s:
            log.info("told to stop: the node is given back within %g s", grace_s)
        self._leaving = True
        self._happen(Reclaimed(grace_s, "the agent was told to stop"))

    # --- what happens ----------------------------------------------------------------------------------------------

    def _happen(self, happening: Happening) -> None:
        before = self.hold
        self.hold, actions = step(before, happening, self.clock().mono_s)
        if self.hold.phase is not before.phase or self.hold.epoch != before.epoch:
            log.info("lease %d: %s -> %d: %s", before.epoch, before.phase, self.hold.epoch, self.hold.phase)
        for action in actions:
            self._do(action)
        self._report()
        if self._leaving and self.hold.phase is Phase.IDLE:
            self._ended.set()

    def _command(self, command: pb.AgentCommand) -> None:
        match command.WhichOneof("body"):
            case "granted":
                self._happen(Granted(command.granted.epoch, self._offer().spare))
            case "join":
                join = command.join
                spare = self._offer().spare
                self._happen(JoinAsked(join.epoch, join.ray_address, join.ray_token, join.ray_version, spare))
            case "leave":
                self._happen(LeaveAsked(command.leave.epoch))
            case "reclaim":
                self._asked_to_reclaim(command.reclaim)
            case unknown:
                log.warning("the scheduler sent %s, which this agent does not know: update it", unknown)

    def _asked_to_reclaim(self, asked: pb.ReclaimAsked) -> None:
        """An operator's drain, or the repetition of a reclaim after the stream broke."""
        if asked.epoch != self.hold.epoch or self.hold.phase is Phase.IDLE:
            return
        if self.hold.phase in (Phase.GRANTED, Phase.RUNNING):
            self.word.withhold(f"drained by an operator ({asked.cause or 'no cause given'}); `fallow lend` ends that")
        self._happen(Reclaimed(asked.grace_s, asked.cause or "drained by an operator"))

    def _do(self, action: Action) -> None:
        match action:
            case StartRaylet():
                self.lending.start(action, self.judgement.ends_at)
            case EndRaylet():
                self.lending.end(action)
            case SayReclaim():
                self.connection.send(self._reclaim_notice(action))
            case SayLeft():
                self._left(action)

    def _raylet_started(self, epoch: int, error: str) -> None:
        if error:
            log.warning("lease %d: %s", epoch, error)
        self.connection.send(messages.raylet_started(epoch, error))

    def _left(self, said: SayLeft) -> None:
        log.info(
            "lease %d is over (%s): free after %.2f s, %d killed", said.epoch, said.cause, said.free_s, said.killed
        )
        self.last_left = said
        self.connection.send(messages.left(said), keep=True)

    # --- what is said ----------------------------------------------------------------------------------------------

    def _opening(self) -> list[pb.AgentMessage]:
        """Everything that a scheduler must know that has just seen this agent for the first time."""
        epoch = self.hold.epoch or next((m.left.epoch for m in reversed(self.connection.kept)), 0)
        opening = [messages.hello(self.node, self.instance, epoch), messages.report(self._fresh_report())]
        if self.lending.is_up and self.hold.phase in (Phase.RUNNING, Phase.DRAINING):
            opening.append(messages.raylet_started(self.hold.epoch))
        if self.hold.deadline is not None and self.hold.reclaimed_at is not None:
            grace_s = self.hold.deadline - self.hold.reclaimed_at
            opening.append(self._reclaim_notice(SayReclaim(self.hold.epoch, self.hold.deadline, grace_s, "reclaimed")))
        return opening

    def _report(self, beat: bool = False) -> None:
        """Send a report: at every beat, and whenever what it says has changed."""
        fresh = self._fresh_report()
        if beat or messages.gist(fresh) != messages.gist(self._last_report):
            self.connection.send(messages.report(fresh))
            self._last_report = fresh

    def _fresh_report(self) -> pb.NodeReport:
        now, offered = self.clock(), self._offer()
        rss, cpu = self._footprint.sample(now.mono_s, self.lending.keeper)
        return messages.node_report(self.hold.epoch, offered, now, rss, cpu, self._energy_j())

    def _energy_j(self) -> float:
        epoch, first_j, newest_j = self._meter
        return max(0.0, newest_j - first_j) if epoch == self.hold.epoch else 0.0

    def _reclaim_notice(self, said: SayReclaim) -> pb.AgentMessage:
        now = self.clock()
        return messages.reclaim(said, now.unix_s + said.deadline - now.mono_s)

    def _offer(self) -> Judgement:
        now_s = self.clock().mono_s
        lent = self.hold.phase is not Phase.IDLE
        return offer(self.judgement, self._objection(now_s), lent, now_s, self.grace_s)

    def _objection(self, now_s: float) -> Objection | None:
        if self._leaving:
            return Objection("owner", "its agent was told to stop")
        if self.word.withheld:
            return Objection("owner", self.word.withheld)
        problem = self.lending.problem(now_s)
        return Objection("agent", problem) if problem else None

    # --- the owner's word --------------------------------------------------------------------------------------------

    def reclaim(self, grace_s: float | None) -> control_socket.Answer:
        """See `control_socket.Owner`."""
        grace_s = self.grace_s if grace_s is None else grace_s
        self.word.withhold("taken back by its owner; `fallow lend` offers it again")
        self._happen(Reclaimed(grace_s, "reclaimed by its owner"))
        return self.status()

    def lend(self) -> control_socket.Answer:
        """See `control_socket.Owner`."""
        self.word.lend()
        self.lending.forgive()
        self._report()
        return self.status()

    def status(self) -> control_socket.Answer:
        """See `control_socket.Owner`."""
        now, offered, left = self.clock(), self._offer(), self.last_left
        rss, cpu = self._footprint.sample(now.mono_s, self.lending.keeper)
        deadline = self.hold.deadline
        return {
            "node": self.node.name,
            "site": self.node.site,
            "pid": os.getpid(),
            "connected": self.connection.connected,
            "lease": str(self.hold.phase),
            "epoch": self.hold.epoch,
            "raylet_up": self.lending.is_up,
            "withheld": self.word.withheld,
            "spare_devices": list(offered.spare),
            "source": offered.source,
            "reason": offered.reason,
            "deadline_s": None if deadline is None else now.unix_s + deadline - now.mono_s,
            "last": None
            if left is None
            else {"epoch": left.epoch, "cause": left.cause, "free_s": left.free_s, "killed": left.killed},
            "rss_bytes": rss,
            "cpu_fraction": cpu,
        }
