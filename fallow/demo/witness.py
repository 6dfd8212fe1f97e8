"""Watches the whole run from outside and notes every state that a law forbids."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable

from fallow.errors import FallowError, Unreachable
from fallow.local_cluster import LocalCluster
from fallow.results import Job, Node

_EVERY_S = 0.5


class Witness:
    """Looks at jobs and nodes twice a second, until it is stopped."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)
        self.looks = 0
        self.booked_twice: set[str] = set()
        self.gangs_broken: set[str] = set()
        self.agent_rss_bytes = 0.0
        self.agent_cpu_fraction = 0.0

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(timeout=30.0)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                jobs, nodes = self._cluster.client.jobs(), self._cluster.client.nodes()
            except Unreachable:
                continue
            except FallowError:
                if self._stop.is_set():
                    return
                raise
            self.looks += 1
            self.booked_twice.update(booked_twice(jobs))
            self.gangs_broken.update(gangs_broken(jobs))
            self._note_agents(nodes)

    def _note_agents(self, nodes: Iterable[Node]) -> None:
        fresh = [n for n in nodes if time.time() - n.last_report_s < 60]
        self.agent_rss_bytes = max([self.agent_rss_bytes, *(n.agent_rss_bytes for n in fresh)])
        self.agent_cpu_fraction = max((n.agent_cpu_fraction for n in fresh), default=self.agent_cpu_fraction)


def booked_twice(jobs: Iterable[Job]) -> list[str]:
    """Devices that more than one worker has at one time (law 2)."""
    taken = Counter((w.node, w.epoch, device) for j in jobs for w in j.workers for device in w.devices)
    return [f"{node}/{epoch} {device}" for (node, epoch, device), count in taken.items() if count > 1]


def gangs_broken(jobs: Iterable[Job]) -> list[str]:
    """Jobs that have some workers, but fewer than their minimum (law 3)."""
    return [f"{j.name} at width {j.width}, minimum {j.min_width}" for j in jobs if 0 < j.width < j.min_width]
