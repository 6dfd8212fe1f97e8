"""What a replay keeps of one served model: which experts are live when, and how many bytes had to move for it.

Experts are loaded as `runtime.serving.rollout` has it done: a node that is warm first loads those of its experts that
no node holds, each by one node, and then all others. An expert is live on a node from when the load that brought it
is done until the node is lost or has unloaded it; what is given up is unloaded after everything is loaded, not before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scheduler.domain.jobs import Assignment, ExpertId, ModelShape, Role

Flags = NDArray[np.bool_]


class ServedModel:
    """See the module. Times never go backwards. `bytes_per_s`: how fast a node loads."""

    def __init__(self, shape: ModelShape, bytes_per_s: float) -> None:
        self.shape = shape
        self.moved_bytes = 0
        self.spans: list[tuple[float, float, bool]] = []  # (from, to, whether every expert was live)
        self._bytes_per_s = bytes_per_s
        self._pairs = shape.layers * shape.experts
        self._wanted: dict[str, Flags] = {}  # node -> experts that it is to host
        self._live: dict[str, Flags] = {}
        self._loads: dict[str, tuple[float, Flags]] = {}  # node -> when it has loaded what; nothing until it is warm
        self._engines: set[str] = set()
        self._now_s: float | None = None

    def assign(self, assignment: Assignment, warm_s: Mapping[str, float], now_s: float) -> None:
        """The model is to be spread like this; `warm_s` says when each node held is warm."""
        self.advance_to(now_s)
        shards = [s for s in assignment.workers if s.role is Role.SHARD and s.lease.node in warm_s]
        self._wanted = {s.lease.node: self._flags(s.experts) for s in shards}
        engines = {slot.lease.node for slot in assignment.workers if slot.role is Role.ENGINE}
        self.moved_bytes += len(engines - self._engines) * self.shape.dense_bytes
        self._engines = engines
        for node in self._wanted.keys() - self._live.keys() - self._loads.keys():
            self._loads[node] = max(now_s, warm_s[node]), self._none()
        self._load_on(now_s)
        self.advance_to(now_s)

    def lose(self, node: str, now_s: float) -> None:
        """A node is gone."""
        self.advance_to(now_s)
        for table in (self._wanted, self._live, self._loads):
            table.pop(node, None)
        self._engines.discard(node)

    def loaded_s(self) -> float:
        """When everything is loaded, if nothing changes any more."""
        times = [
            self._loads[node][0] + self._takes_s(self._missing(node) & ~self._loads[node][1]) for node in self._loads
        ]
        return max(times, default=self._now_s or 0.0)

    def advance_to(self, now_s: float) -> None:
        """Let loading go on until now, and note since when every expert was live."""
        self._now_s = now_s if self._now_s is None else self._now_s
        while self._loads and (done_s := min(at_s for at_s, _ in self._loads.values())) <= now_s:
            self._span_to(max(self._now_s, done_s))
            for node in sorted(node for node, (at_s, _) in self._loads.items() if at_s <= done_s):
                self._live[node] = self._live.get(node, self._none()) | self._loads.pop(node)[1]
            self._load_on(done_s)
        self._span_to(now_s)

    def _load_on(self, now_s: float) -> None:
        """Nodes that load nothing now go on with what they lack: first what nobody has, each expert by one of them."""
        missing = {
            node: lacks
            for node in sorted(self._wanted.keys() - self._loads.keys())
            if (lacks := self._missing(node)).any()
        }
        urgent = self._share_out(missing)
        for node, lacks in missing.items():
            load = urgent[node] if urgent[node].any() else lacks
            self.moved_bytes += int(load.sum()) * self.shape.expert_bytes
            self._loads[node] = now_s + self._takes_s(load), load
        if not self._loads:
            self._live = {node: live & self._wanted[node] for node, live in self._live.items() if node in self._wanted}

    def _share_out(self, missing: Mapping[str, Flags]) -> dict[str, Flags]:
        """What nobody has, about evenly over the nodes that lack it."""
        urgent, counts = {node: self._none() for node in missing}, dict.fromkeys(missing, 0)
        for expert in np.flatnonzero(~self._held()).tolist() if missing else ():
            node = min((n for n, lacks in missing.items() if lacks[expert]), key=lambda n: (counts[n], n), default="")
            if node:
                urgent[node][expert] = True
                counts[node] += 1
        return urgent

    def _takes_s(self, experts: Flags) -> float:
        return int(experts.sum()) * self.shape.expert_bytes / self._bytes_per_s

    def _missing(self, node: str) -> Flags:
        if node not in self._wanted:
            return self._none()
        return self._wanted[node] & ~self._live.get(node, self._none())

    def _held(self) -> Flags:
        """What some node holds."""
        return np.asarray(np.logical_or.reduce([*self._live.values(), self._none()]))

    def _span_to(self, to_s: float) -> None:
        assert self._now_s is not None
        if to_s > self._now_s:
            self.spans.append((self._now_s, to_s, bool(self._held().all())))
            self._now_s = to_s

    def _none(self) -> Flags:
        return np.zeros(self._pairs, dtype=np.bool_)

    def _flags(self, experts: tuple[ExpertId, ...]) -> Flags:
        flags = self._none()
        flags[[layer * self.shape.experts + expert for layer, expert in experts]] = True
        return flags
