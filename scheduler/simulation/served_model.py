"""What a replay keeps of one served model: which experts are live when, and how many bytes had to move for it.

An expert is live on a node from when the node has loaded it until the node is lost or has unloaded it. Loading takes
the job's up cost from when the node is warm; what is given up is unloaded after that, not before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scheduler.domain.jobs import Assignment, ExpertId, ModelShape, Role

Flags = NDArray[np.bool_]


class ServedModel:
    """See the module. Times never go backwards."""

    def __init__(self, shape: ModelShape, load_s: float) -> None:
        self.shape = shape
        self.moved_bytes = 0
        self.spans: list[tuple[float, float, bool]] = []  # (from, to, whether every expert was live)
        self._load_s = load_s
        self._pairs = shape.layers * shape.experts
        self._wanted: dict[str, Flags] = {}  # node -> experts that it is to host
        self._live: dict[str, Flags] = {}
        self._loading: dict[str, float] = {}  # node -> when what it lacks is loaded
        self._engines: set[str] = set()
        self._now_s: float | None = None

    def assign(self, assignment: Assignment, warm_s: dict[str, float], now_s: float) -> None:
        """The model is to be spread like this; `warm_s` says when each node held is warm."""
        self.advance_to(now_s)
        self._wanted = {s.lease.node: self._flags(s.experts) for s in assignment.workers if s.role is Role.SHARD}
        engines = {slot.lease.node for slot in assignment.workers if slot.role is Role.ENGINE}
        self.moved_bytes += len(engines - self._engines) * self.shape.dense_bytes
        self._engines = engines
        for node, wanted in self._wanted.items():
            missing = int((wanted & ~self._live.get(node, np.zeros_like(wanted))).sum())
            if missing and node in warm_s:
                self.moved_bytes += missing * self.shape.expert_bytes
                self._loading[node] = max(now_s, warm_s[node]) + self._load_s
        if not self._loading:
            self._unload()

    def lose(self, node: str, now_s: float) -> None:
        """A node is gone."""
        self.advance_to(now_s)
        for table in (self._wanted, self._live, self._loading):
            table.pop(node, None)
        self._engines.discard(node)

    def advance_to(self, now_s: float) -> None:
        """Let loading go on until now, and note since when every expert was live."""
        self._now_s = now_s if self._now_s is None else self._now_s
        while self._loading and min(self._loading.values()) <= now_s:
            node = min(self._loading, key=lambda n: (self._loading[n], n))
            self._span_to(max(self._now_s, self._loading.pop(node)))
            wanted = self._wanted.get(node, np.zeros(self._pairs, dtype=np.bool_))
            self._live[node] = wanted | self._live.get(node, np.zeros_like(wanted))
            if not self._loading:
                self._unload()
        self._span_to(now_s)

    def _span_to(self, to_s: float) -> None:
        assert self._now_s is not None
        if to_s > self._now_s:
            self.spans.append((self._now_s, to_s, self._is_whole()))
            self._now_s = to_s

    def _is_whole(self) -> bool:
        return bool(self._live) and bool(np.logical_or.reduce(list(self._live.values())).all())

    def _unload(self) -> None:
        self._live = {node: live & self._wanted[node] for node, live in self._live.items() if node in self._wanted}

    def _flags(self, experts: tuple[ExpertId, ...]) -> Flags:
        flags = np.zeros(self._pairs, dtype=np.bool_)
        flags[[layer * self.shape.experts + expert for layer, expert in experts]] = True
        return flags
