# ruff: noqa: N815 - tensors carry their dimensions in fields too
"""An engine's side of the expert calls: every layer's calls leave together, and each is answered by some copy.

A shard that hangs up is replaced at once by the other copies of its experts; one that is slow is asked no longer
than `slow_s`, then the same call goes to another copy as well and the first answer counts. An expert without any
live copy makes the call wait until a new table brings one. Sockets, because a call through Ray costs fifty times
the round trip (docs/BENCHMARKS.md).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from runtime.serving.expert_calls import ExpertCall, bits, decode_reply, encode_call
from runtime.serving.link import Link
from runtime.serving.routing import Routing, share_out
from runtime.serving.wire import Frame, Kind

log = logging.getLogger(__name__)

SLOW_S = 0.05
"""A call may take this long, and SLOW_FACTOR times what its rows usually take, before another copy is asked too."""
SLOW_FACTOR = 5.0
DEAD_S = 20.0
"""A shard that has not answered for this long is hung up on."""
RECONNECT_S = 0.25
CONNECT_TIMEOUT_S = 2.0


class PlaneClosed(Exception):
    """The engine stops; nobody waits for the answer any more."""


@dataclass(slots=True)
class _Pending:
    """One call under way: which experts it asks for, and until when it may be the only one."""

    link: Link
    experts: list[int]
    dtype: torch.dtype
    rows: int
    sent_s: float
    hedge_s: float
    hedged: bool = False


@dataclass(slots=True)
class _Layer:
    """One layer's work: its (token, expert) pairs sorted by expert. Invariant: an expert is in `missing` until the rows
    of `y_ND` that are its pairs' are filled."""

    layer: int
    x_TD: torch.Tensor
    order_P: np.ndarray  # pair (t, k) as t * K + k, which is its row of y_ND
    token_P: np.ndarray
    spans: dict[int, tuple[int, int]]  # expert -> its pairs
    y_ND: torch.Tensor
    missing: set[int]
    calls: dict[int, _Pending] = field(default_factory=dict)

    @staticmethod
    def of(layer: int, x_TD: torch.Tensor, expert_TK: torch.Tensor) -> _Layer:
        """Nothing of it asked yet."""
        expert_N = expert_TK.numpy().ravel()
        order_P = expert_N.argsort(kind="stable")
        ends = np.bincount(expert_N).cumsum().tolist()
        spans = {e: (low, high) for e, (low, high) in enumerate(itertools.pairwise([0, *ends])) if high > low}
        y_ND = torch.empty(len(expert_N), x_TD.shape[1], dtype=x_TD.dtype)
        return _Layer(layer, x_TD.cpu(), order_P, order_P // expert_TK.shape[1], spans, y_ND, set(spans))

    def rows(self, experts: Iterable[int]) -> dict[int, int]:
        """How many pairs each expert has."""
        return {e: self.spans[e][1] - self.spans[e][0] for e in experts}

    def ask(self, experts: list[int]) -> ExpertCall:
        """The call for some of the experts; only the tokens that they need travel."""
        token_P = self._pairs(self.token_P, experts)
        is_needed_T = np.zeros(len(self.x_TD), bool)
        is_needed_T[token_P] = True
        tokens = is_needed_T.nonzero()[0]
        counts = list(self.rows(experts).values())
        if len(tokens) == len(self.x_TD):
            return ExpertCall(self.layer, self.x_TD, experts, counts, torch.from_numpy(token_P.astype(np.int32)))
        place_T = is_needed_T.cumsum() - 1
        x_TD = self.x_TD.index_select(0, torch.from_numpy(tokens))
        return ExpertCall(self.layer, x_TD, experts, counts, torch.from_numpy(place_T[token_P].astype(np.int32)))

    def unasked(self) -> list[int]:
        """Experts that no call under way asks for."""
        return sorted(self.missing.difference(*(call.experts for call in self.calls.values())))

    def fill(self, experts: list[int], y_PD: torch.Tensor) -> None:
        """Take an answer; parts that another copy has given already are left as they are."""
        given_PD = bits(y_PD)
        if not self.missing.issuperset(experts):
            ends = itertools.accumulate(self.rows(experts).values())
            parts = zip(experts, np.split(given_PD, list(ends)[:-1]), strict=True)
            wanted = {e: part for e, part in parts if e in self.missing}
            if not wanted:
                return
            experts, given_PD = list(wanted), np.concatenate(list(wanted.values()))
        bits(self.y_ND)[self._pairs(self.order_P, experts)] = given_PD
        self.missing.difference_update(experts)

    def _pairs(self, of_P: np.ndarray, experts: list[int]) -> np.ndarray:
        """The part of it that belongs to some experts."""
        parts = [of_P[slice(*self.spans[e])] for e in experts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class ExpertPlane:
    """Calls to expert shards. `run` belongs to one thread (the engine's); everything else may be called from any."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._routing = Routing()
        self._links: dict[str, Link] = {}
        self._gate = threading.Condition()
        self._swapping = threading.Lock()
        self._swap_wanted = False
        self._closed = False
        self._next_call = 0
        self._row_s = 0.0
        self._wake = threading.Event()
        self.failovers = 0
        self.hops = 0
        self.hop_s = 0.0
        self.wait_s = 0.0  # part of hop_s in which nothing was left to do here
        self.orphans: tuple[tuple[int, int], ...] = ()
        threading.Thread(target=self._reconnect_forever, name="shard-connect", daemon=True).start()

    # --- the table ---------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Of the table in use."""
        return self._routing.epoch

    def live_shards(self) -> list[str]:
        """Shards of the table that are connected."""
        return sorted(self._links)

    def set_routing(self, routing: Routing) -> bool:
        """Use a newer table. When this returns no call is under way under the old one. False if it is not newer."""
        fresh = self._connect(routing)
        with self._pause():
            if routing.epoch <= self._routing.epoch:
                _close(fresh.values())
                return False
            self._routing = routing
            stale = [link for link in self._links.values() if routing.shards.get(link.shard) != link.address]
            for link in stale:
                del self._links[link.shard]
            self._links.update(fresh)
            self._gate.notify_all()
        _close(stale)
        self._wake.set()
        return True

    def close(self) -> None:
        """Hang up on every shard; a call that is under way ends with `PlaneClosed`."""
        with self._pause():
            self._closed = True
            _close(self._links.values())
            self._links.clear()
            self._gate.notify_all()
        self._wake.set()

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        """Hold the gate between two rounds of `run`. One at a time, so that `_swap_wanted` has one meaning."""
        with self._swapping:
            self._swap_wanted = True
            with self._gate:
                self._swap_wanted = False
                yield

    def _connect(self, routing: Routing) -> dict[str, Link]:
        fresh: dict[str, Link] = {}
        for shard, address in routing.shards.items():
            link = self._links.get(shard)
            if link is not None and link.address == address:
                continue
            try:
                fresh[shard] = Link.open(shard, address, self._secret, CONNECT_TIMEOUT_S)
            except OSError as error:
                log.info("shard %s at %s:%d cannot be reached: %s", shard, *address, error)
        return fresh

    def _reconnect_forever(self) -> None:
        while not self._closed:
            self._wake.wait(RECONNECT_S if self._absent() else None)
            self._wake.clear()
            if self._closed or not self._absent():
                continue
            fresh = self._connect(self._routing)
            with self._pause():
                wanted = {s: link for s, link in fresh.items() if self._routing.shards.get(s) == link.address}
                late = [link for s, link in fresh.items() if s not in wanted or s in self._links or self._closed]
                self._links.update({s: link for s, link in wanted.items() if link not in late})
                self._gate.notify_all()
            _close(late)

    def _absent(self) -> bool:
        return any(shard not in self._links for shard in self._routing.shards)

    # --- calls -------------------------------------------------------------------------------------------------

    def run(self, layer: int, x_TD: torch.Tensor, expert_TK: torch.Tensor) -> torch.Tensor:
        """`y_TKD`: every token through each of its experts, unweighted. Blocks until all are answered.

        Raises `PlaneClosed` if the plane is closed meanwhile.
        """
        started = time.monotonic()
        work = _Layer.of(layer, x_TD, expert_TK)
        with self._gate:
            while self._swap_wanted:
                self._gate.wait(0.001)
            self._send(work, sorted(work.missing))
            while work.missing:
                self._round(work)
        self.hops += 1
        self.hop_s += time.monotonic() - started
        return work.y_ND.view(*expert_TK.shape, x_TD.shape[1])

    def _round(self, work: _Layer) -> None:
        """Take what has arrived; ask again where a shard died or is slow; wait where no copy lives."""
        if self._closed:
            raise PlaneClosed
        self._forget_cut_off(work)
        if work.unasked():
            self._send(work, work.unasked())
        orphans = work.unasked()
        self.orphans = tuple((work.layer, expert) for expert in orphans)
        if not work.calls:
            self._gate.wait(RECONNECT_S)
            return
        if self._swap_wanted and (orphans or any(call.hedged for call in work.calls.values())):
            self._gate.wait(0.001)  # a new table may be what this call waits for
            return
        self._gather(work)
        self._hedge(work)

    def _forget_cut_off(self, work: _Layer) -> None:
        """Calls on connections that have ended are no longer under way."""
        left = {i: call for i, call in work.calls.items() if self._links.get(call.link.shard) is call.link}
        if len(left) < len(work.calls):
            work.calls = left
            for call in left.values():
                call.hedged = False  # what overtook it may have been cut off

    def _send(self, work: _Layer, experts: list[int]) -> None:
        rows = work.rows(experts)
        dead = [s for s in self._routing.shards if s not in self._links]
        slow = [link.shard for link in self._links.values() if link.under_way]
        chosen, _ = share_out(self._routing, work.layer, rows, (dead, slow))
        for shard, asked in chosen.items():
            self._send_one(work, shard, asked)

    def _send_one(self, work: _Layer, shard: str, experts: list[int]) -> None:
        call = work.ask(experts)
        rows, now_s = len(call.token_P), time.monotonic()
        self._next_call += 1
        patience_s = SLOW_S + SLOW_FACTOR * self._row_s * rows
        link = self._links[shard]
        work.calls[self._next_call] = _Pending(link, experts, call.x_TD.dtype, rows, now_s, now_s + patience_s)
        try:
            link.send(self._next_call, encode_call(call), now_s)
        except OSError as error:
            self._lose(link, error)

    def _gather(self, work: _Layer) -> None:
        poller = select.poll()
        links = {link.fileno(): link for link in self._links.values() if link.under_way}
        for link in links.values():
            poller.register(link, link.events)
        hedges_s = [call.hedge_s for call in work.calls.values() if not call.hedged]
        wait_ms = min(50.0, max(1.0, 1000 * (min(hedges_s) - time.monotonic()))) if hedges_s else 50.0
        polled_s = time.monotonic()
        ready = poller.poll(wait_ms)
        self.wait_s += time.monotonic() - polled_s
        for fd, events in ready:
            link = links[fd]
            try:
                if events & select.POLLOUT:
                    link.flush()
                if events & ~select.POLLOUT:
                    for frame in link.receive():
                        self._take(work, frame)
            except OSError as error:
                self._lose(link, error)

    def _take(self, work: _Layer, frame: Frame) -> None:
        call = work.calls.pop(frame.call, None)
        if call is None:
            return  # the late answer of a shard that was overtaken by another copy
        if frame.kind is not Kind.REPLY:
            log.warning("shard %s could not answer: %s", call.link.shard, bytes(frame.body).decode(errors="replace"))
            self._drop_copy(work.layer, call)
            return
        work.fill(call.experts, decode_reply(frame.body, call.dtype, call.rows, work.x_TD.shape[1]))
        per_row_s = (time.monotonic() - call.sent_s) / call.rows
        self._row_s += 0.1 * (per_row_s - self._row_s)

    def _drop_copy(self, layer: int, call: _Pending) -> None:
        """A shard lacks an expert that the table says it has: ask others until the next table."""
        self.failovers += 1
        bad = {(layer, expert) for expert in call.experts}
        experts = {
            key: tuple(s for s in names if s != call.link.shard) if key in bad else names
            for key, names in self._routing.experts.items()
        }
        self._routing = Routing(self._routing.epoch, self._routing.shards, experts)

    def _lose(self, link: Link, error: OSError) -> None:
        """A shard hung up: the next round sends its calls to the other copies."""
        log.warning("lost shard %s: %s", link.shard, error)
        self.failovers += 1
        link.close()
        self._links.pop(link.shard, None)
        self._wake.set()

    def _hedge(self, work: _Layer) -> None:
        now_s = time.monotonic()
        for call in [call for call in work.calls.values() if call.hedge_s < now_s and not call.hedged]:
            call.hedged = True
            rows = work.rows(work.missing.intersection(call.experts))
            absent = [s for s in self._routing.shards if s not in self._links]
            chosen, _ = share_out(self._routing, work.layer, rows, ([*absent, call.link.shard],))
            for shard, experts in chosen.items():
                self.failovers += 1
                self._send_one(work, shard, experts)
        for link in list(self._links.values()):
            oldest_s = link.oldest_s()
            if oldest_s is not None and oldest_s < now_s - DEAD_S:
                self._lose(link, TimeoutError(f"no answer for {DEAD_S:g} s"))


def _close(links: Iterable[Link]) -> None:
    for link in links:
        link.close()
