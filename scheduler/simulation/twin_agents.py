"""Nodes on a manual clock: what their owners do with them, and what their agents say and obey."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from scheduler.domain import events
from scheduler.domain.cluster import Device, Lease, LeaseKey
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.twin_sites import Post, SiteTwins


@dataclass(slots=True)
class _NodeTwin:
    """A node and its agent. `reclaimed_s` is set while its owner waits for it."""

    site: str
    devices: tuple[Device, ...]
    epoch: int = 0
    alive: bool = True
    connected: bool = True
    joined: bool = False
    spare: bool = False
    grace_s: float = 0.0
    expected_end_s: float | None = None
    reclaimed_s: float | None = None
    deadline_s: float = 0.0
    cause: str = ""


class AgentTwins:
    """All nodes and their agents."""

    def __init__(self, agenda: Agenda, post: Post, sites: SiteTwins, warmup_s: float) -> None:
        self._agenda = agenda
        self._post = post
        self._sites = sites
        self._warmup_s = warmup_s
        self._nodes: dict[str, _NodeTwin] = {}

    @property
    def sites(self) -> set[str]:
        """Sites that have nodes."""
        return {twin.site for twin in self._nodes.values()}

    def epoch_of(self, node: str) -> int:
        """The lease that the node's agent knows of; 0 without one, or where there is no such node."""
        return self._nodes[node].epoch if node in self._nodes else 0

    # --- streams -----------------------------------------------------------------------------------------------

    def add(self, node: str, site: str, devices: tuple[Device, ...]) -> None:
        """A node's agent connects; its owner uses it."""
        self._nodes[node] = _NodeTwin(site, devices)
        self._hello(node)

    def drop(self, node: str) -> None:
        """An agent's stream breaks; what runs on the node goes on."""
        self._say(node, events.AgentDisconnected, node=node, instance=f"{node}-twin")
        self._nodes[node].connected = False

    def come_back(self, node: str) -> None:
        """A living agent connects again."""
        twin = self._nodes[node]
        if twin.alive and not twin.connected:
            twin.connected = True
            self._hello(node)

    def reconnect(self) -> None:
        """The scheduler was away: every agent that was connected connects again."""
        for node, twin in sorted(self._nodes.items()):
            if twin.alive and twin.connected:
                self._hello(node)

    def _say(self, to_say_at: str, kind: type[events.Event], /, **fields: object) -> None:
        """An agent says what it has to say, or nobody hears it."""
        if self._nodes[to_say_at].connected:
            self._post(self._agenda.event(kind, **fields))

    def _hello(self, node: str) -> None:
        twin = self._nodes[node]
        self._say(
            node,
            events.AgentConnected,
            node=node,
            site=twin.site,
            instance=f"{node}-twin",
            address=node,
            devices=twin.devices,
            epoch=twin.epoch,
        )
        if twin.reclaimed_s is not None:
            self._say_reclaimed(node)
        elif twin.spare:
            self._report(node)

    def _report(self, node: str) -> None:
        twin = self._nodes[node]
        self._say(
            node,
            events.NodeReported,
            node=node,
            instance=f"{node}-twin",
            epoch=twin.epoch,
            spare_devices=tuple(d.id for d in twin.devices) if twin.spare else (),
            source="twin",
            reason="idle" if twin.spare else "busy",
            grace_s=twin.grace_s,
            expected_end_s=twin.expected_end_s,
        )

    def _say_reclaimed(self, node: str) -> None:
        twin = self._nodes[node]
        self._say(
            node,
            events.NodeReclaimed,
            lease=LeaseKey(node, twin.epoch),
            deadline_s=twin.deadline_s,
            grace_s=twin.deadline_s - (twin.reclaimed_s or 0.0),
            cause=twin.cause,
        )

    # --- owners ------------------------------------------------------------------------------------------------

    def lend(self, node: str, grace_s: float, expected_end_s: float | None) -> None:
        """The node's owner has nothing for it. A node that was killed comes back first."""
        twin = self._nodes[node]
        twin.spare, twin.grace_s, twin.expected_end_s = True, grace_s, expected_end_s
        if twin.alive:
            self._report(node)
            return
        twin.alive, twin.connected, twin.epoch, twin.joined = True, True, 0, False
        self._hello(node)

    def reclaim(self, node: str, grace_s: float, cause: str) -> None:
        """The node's owner wants it back; at the deadline whatever runs there is killed."""
        twin = self._nodes[node]
        twin.spare = False
        if not twin.epoch:
            self._report(node)
            return
        if twin.reclaimed_s is not None:
            return
        key = LeaseKey(node, twin.epoch)
        twin.reclaimed_s = self._agenda.now_s
        twin.deadline_s, twin.cause = twin.reclaimed_s + grace_s, cause
        self._say_reclaimed(node)
        self._agenda.later(grace_s, lambda: self._free(key, "reclaimed"), key)

    def kill(self, node: str) -> None:
        """The node dies without a word; its site notices at once."""
        twin = self._nodes[node]
        key = LeaseKey(node, twin.epoch)
        twin.alive, twin.joined, twin.spare = False, False, False
        self._agenda.call_off(key)
        self.drop(node)
        if twin.epoch:
            self._sites.lose_workers(key)
            self._sites.say(twin.site, events.NodeGone, lease=key)
        twin.epoch, twin.reclaimed_s = 0, None

    # --- what the scheduler wants ------------------------------------------------------------------------------

    def grant(self, lease: Lease) -> None:
        """The agent hears of its lease."""
        twin = self._listening(lease.key.node)
        if twin and twin.epoch == 0:
            twin.epoch = lease.key.epoch

    def join(self, lease: Lease) -> None:
        """The agent starts its raylet, which is ready after the warm-up."""
        twin = self._listening(lease.key.node)
        if twin and twin.epoch == lease.key.epoch and not twin.joined:
            twin.joined = True
            self._say(lease.key.node, events.RayletStarted, lease=lease.key)
            ready = functools.partial(self._sites.say, lease.site, events.NodeReady, lease=lease.key)
            self._agenda.later(self._warmup_s, ready, lease.key)

    def leave(self, lease: Lease) -> None:
        """The agent stops its raylet."""
        if self._listening(lease.key.node):
            self._free(lease.key, "released")

    def ask_reclaim(self, lease: Lease, grace_s: float, cause: str) -> None:
        """The agent reclaims as if its owner had asked."""
        twin = self._listening(lease.key.node)
        if twin and twin.epoch == lease.key.epoch:
            self.reclaim(lease.key.node, grace_s, cause)

    def _listening(self, node: str) -> _NodeTwin | None:
        twin = self._nodes.get(node)
        return twin if twin and twin.connected else None

    def _free(self, key: LeaseKey, cause: str) -> None:
        """The agent stops the raylet, and with it whatever still runs."""
        twin = self._nodes[key.node]
        if twin.epoch != key.epoch:
            return
        self._agenda.call_off(key)
        killed = self._sites.lose_workers(key)
        now_s, reclaimed_s = self._agenda.now_s, twin.reclaimed_s
        twin.epoch, twin.joined, twin.reclaimed_s = 0, False, None
        free_s = now_s - reclaimed_s if reclaimed_s is not None else 0.0
        said = "reclaimed" if reclaimed_s is not None else cause
        self._say(key.node, events.NodeLeft, lease=key, cause=said, free_s=free_s, killed=killed)
