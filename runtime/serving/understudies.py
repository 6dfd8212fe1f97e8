"""The shard that stands by for a model's only engine: it holds the dense part too and can go on at once.

An engine of its own would take a node from somebody; a process that waits somewhere would still have to load. A shard
is there already, on another node, and its engine does nothing until the first one is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from runtime.serving.fleet import ActorGone, Fleet
from runtime.serving.rollout import Up
from runtime.serving.routing import Address

log = logging.getLogger(__name__)


class Understudies:
    """At most one at a time. All calls come from the site's event loop."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._refused: set[str] = set()
        self._preparing = ""
        self.ready: dict[str, Address] = {}  # shard -> where its engine answers

    def wanted(self, up: Mapping[str, Up]) -> str | None:
        """The shard that should become one now; None if there is one, none is needed, or none can."""
        if self._preparing or any(shard in up for shard in self.ready):
            return None
        return choose({name: worker for name, worker in up.items() if name not in self._refused})

    async def prepare(self, shard: str) -> int:
        """Have a shard load an engine; its table's epoch. One that has no room for it is not asked again."""
        self._preparing = shard
        try:
            told = await self._fleet.understudy(shard)
        except ActorGone as error:
            told = None
            log.warning("shard %s cannot stand by for the engine: %s", shard, error)
        finally:
            self._preparing = ""
        if told is None:
            self._refused.add(shard)
            return 0
        self.ready[shard] = told[0]
        return told[1]

    def forget(self, worker: str) -> None:
        """A worker is gone."""
        self.ready.pop(worker, None)


def choose(up: Mapping[str, Up]) -> str | None:
    """A shard far from the only engine: another cohort if there is one, another node at least."""
    engines = [worker.slot for worker in up.values() if worker.slot.role == "engine"]
    if len(engines) != 1:
        return None
    engine = engines[0]
    shards = [
        worker.slot
        for worker in up.values()
        if worker.slot.role == "shard" and worker.slot.lease.node != engine.lease.node
    ]
    return min(((slot.cohort == engine.cohort, slot.worker) for slot in shards), default=(False, None))[1]
