"""Which leases have a live raylet in the site's Ray cluster, told by their labels."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from runtime.site.controller import LeaseKey, NodeMissing

log = logging.getLogger(__name__)

LABEL = "fallow-lease"

POLL_S = 0.1
"""Ray has no event for "a node joined" that a driver could await; a look costs half a millisecond."""


def label_of(lease: LeaseKey) -> str:
    """Value of the lease's Ray label."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', lease.node)}_{lease.epoch}"


def lease_of(label: str) -> LeaseKey | None:
    """The lease that a label names; None for a label that no agent writes."""
    node, separator, epoch = label.rpartition("_")
    return LeaseKey(node, int(epoch)) if node and separator and epoch.isdigit() else None


class Nodes:
    """Live raylets by lease. `ready` and `gone` are called once for each change, on the event loop."""

    def __init__(
        self,
        look: Callable[[], dict[str, str]],
        ready: Callable[[LeaseKey, str], None],
        gone: Callable[[LeaseKey], None],
    ) -> None:
        self._look = look
        self._ready = ready
        self._gone = gone
        self._alive: dict[LeaseKey, str] = {}
        self._forgotten: set[LeaseKey] = set()

    def ray_node(self, lease: LeaseKey) -> str:
        """Ray's id of the lease's node. Raises `NodeMissing`."""
        wanted = label_of(lease)
        for key, node in self._alive.items():
            if label_of(key) == wanted:
                return node
        raise NodeMissing(f"no live raylet carries the label {LABEL}={wanted}")

    def has(self, lease: LeaseKey) -> bool:
        """Whether the lease's raylet was alive at the last look."""
        return any(label_of(key) == label_of(lease) for key in self._alive)

    def forget(self, lease: LeaseKey) -> None:
        """The lease is over, whatever Ray still believes of its raylet."""
        self._forgotten.add(lease)
        self._lose(lease)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_S)

    async def refresh(self) -> None:
        """Look once and tell what changed."""
        labels = await asyncio.to_thread(self._look)
        seen = {lease: node for label, node in labels.items() if (lease := lease_of(label))}
        for lease in sorted(self._alive.keys() - seen.keys()):
            self._lose(lease)
        for lease in sorted(seen.keys() - self._alive.keys() - self._forgotten):
            self._alive[lease] = seen[lease]
            log.info("raylet of lease %s is ready", lease)
            self._ready(lease, seen[lease])
        self._forgotten &= seen.keys()

    def _lose(self, lease: LeaseKey) -> None:
        if self._alive.pop(lease, None) is not None:
            log.info("raylet of lease %s is gone", lease)
            self._gone(lease)


def live_labels() -> dict[str, str]:
    """Lease labels of the cluster's live nodes, with Ray's node ids. Blocking."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {n["Labels"][LABEL]: n["NodeID"] for n in nodes if n["Alive"] and LABEL in n["Labels"]}
