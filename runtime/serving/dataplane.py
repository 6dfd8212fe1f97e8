"""An engine's side of the expert calls: every layer's calls leave together, and each is answered by some copy.

A shard that hangs up is replaced at once by the other copies of its experts; one that is slow is asked no longer
than `slow_s`, then the same call goes to another copy as well and the first answer counts. An expert without any
live copy makes the call wait until a new table brings one. Sockets, because a call through Ray costs fifty times
the round trip (docs/BENCHMARKS.md).
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
import time
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import torch

from runtime.serving.expert_calls import decode_reply, encode_call
from runtime.serving.layer_work import LayerWork, PendingCall
from runtime.serving.link import Link
from runtime.serving.routing import Routing, share_out
from runtime.serving.wire import Frame, Kind

log = logging.getLogger(__name__)

SLOW_S = 0.05
"""A call may take this long, and SLOW_FACTOR times what its rows usually take, before another copy is asked too."""
SLOW_FACTOR = 5.0
USUAL_S = 0.001
"""A row is believed to take this long more than twice what was usual: single slow moments say nothing."""
DEAD_S = 20.0
"""A shard that has not answered for this long is hung up on."""
RECONNECT_S = 0.25
CONNECT_TIMEOUT_S = 2.0


class PlaneClosed(Exception):
    """The engine stops; nobody waits for the answer any more."""


class ExpertPlane:
    """Calls to expert shards. `run` belongs to one thread (the engine's); everything else may be called from any."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._routing = Routing()
        self._links: dict[str, Link] = {}
        self._lock = threading.RLock()  # of the gate; itself where nothing is waited for, being cheaper
        self._gate = threading.Condition(self._lock)
        self._swapping = threading.Lock()
        self._swap_wanted = False
        self._closed = False
        self._next_call = 0
        self._row_s = 0.0
        self._changes = 0  # of links and table; whoever makes one counts it
        self._poller = select.poll()
        self._polled: dict[int, Link] = {}
        self._polled_changes = -1
        self._checked_s = 0.0
        self._wake = threading.Event()
        self.failovers = 0  # copies that died or lacked what they were said to have
        self.hedges = 0  # calls that another copy was asked as well, since the first was slow
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
            self._changed()
        _close(stale)
        self._wake.set()
        return True

    def close(self) -> None:
        """Hang up on every shard; a call that is under way ends with `PlaneClosed`."""
        with self._pause():
            self._closed = True
            _close(self._links.values())
            self._links.clear()
            self._changed()
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
                self._changed()
            _close(late)

    def _changed(self) -> None:
        """Links or table are other ones now."""
        self._changes += 1
        self._gate.notify_all()

    def _absent(self) -> bool:
        return any(shard not in self._links for shard in self._routing.shards)

    # --- calls -------------------------------------------------------------------------------------------------

    def run(self, layer: int, x_TD: torch.Tensor, expert_TK: torch.Tensor) -> torch.Tensor:
        """`y_TKD`: every token through each of its experts, unweighted. Blocks until all are answered.

        Raises `PlaneClosed` if the plane is closed meanwhile.
        """
        started = time.monotonic()
        with self._lock:
            while self._swap_wanted:
                self._gate.wait(0.001)
            work = self._begin(layer, x_TD, expert_TK)
            while work.missing:
                self._round(work)
        y_TKD = work.finish()
        self.hops += 1
        self.hop_s += time.monotonic() - started
        return y_TKD

    def _begin(self, layer: int, x_TD: torch.Tensor, expert_TK: torch.Tensor) -> LayerWork:
        """All calls of a layer on their way; what no live copy has is asked for once there is one."""
        ids_TK = expert_TK.numpy()
        rows = {e: n for e, n in enumerate(np.bincount(ids_TK.ravel()).tolist()) if n}
        changes, chosen, orphans = self._changes, *self._choose(layer, rows)
        order = [e for asked in chosen.values() for e in asked]
        work = LayerWork.of(layer, x_TD if x_TD.is_cpu else x_TD.cpu(), ids_TK, rows, order + orphans)
        if not orphans:
            work.changes, self.orphans = changes, ()
        for shard, asked in chosen.items():
            self._send_one(work, shard, asked)
        work.make_room()
        for number, call in work.calls.items():
            call.place = work.place(call.experts)
            call.link.expect(number, call.place)
        return work

    def _round(self, work: LayerWork) -> None:
        """Take what has arrived; ask again where a shard died or is slow; wait where no copy lives."""
        if work.changes != self._changes:
            self._follow(work)
        if not work.calls:
            self._gate.wait(RECONNECT_S)
            return
        if self._swap_wanted and (self.orphans or any(call.hedged for call in work.calls.values())):
            self._gate.wait(0.001)  # a new table may be what this call waits for
            return
        self._gather(work)

    def _follow(self, work: LayerWork) -> None:
        """Links or table have changed: what is asked nowhere now is asked elsewhere."""
        if self._closed:
            raise PlaneClosed
        work.changes = self._changes
        left = {i: call for i, call in work.calls.items() if self._links.get(call.link.shard) is call.link}
        if len(left) < len(work.calls):
            work.calls = left
            for call in left.values():
                call.hedged = False  # what overtook it may have been cut off
        if lost := work.unasked():
            chosen, _ = self._choose(work.layer, work.rows(lost))
            for shard, asked in chosen.items():
                self._send_one(work, shard, asked)
        self.orphans = tuple((work.layer, expert) for expert in work.unasked())

    def _choose(
        self, layer: int, rows: dict[int, int], without: Collection[str] = ()
    ) -> tuple[dict[str, list[int]], list[int]]:
        """Which shards to ask for experts with so many rows; those that still owe an answer only where they must."""
        dead = [s for s in self._routing.shards if s not in self._links or s in without]
        slow = [link.shard for link in self._links.values() if link.under_way]
        return share_out(self._routing, layer, rows, (dead, slow))

    def patience_s(self, rows: int) -> float:
        """How long a call with so many rows may take before another copy is asked too."""
        return SLOW_S + SLOW_FACTOR * self._row_s * rows

    def _send_one(self, work: LayerWork, shard: str, experts: list[int]) -> None:
        call, link = work.ask(experts), self._links[shard]
        self._next_call += 1
        now_s = time.monotonic()
        try:
            link.send(self._next_call, encode_call(call), now_s)
        except OSError as error:
            self._lose(link, error)
        hedge_s = now_s + self.patience_s(call.pairs)
        work.calls[self._next_call] = PendingCall(link, experts, call.pairs, now_s, hedge_s)

    def _gather(self, work: LayerWork) -> None:
        links = self._watched()
        polled_s = time.monotonic()
        hedge_s = min([call.hedge_s for call in work.calls.values() if not call.hedged], default=polled_s + 0.05)
        ready = self._poller.poll(min(50.0, max(1.0, 1000 * (hedge_s - polled_s))))
        now_s = time.monotonic()
        self.wait_s += now_s - polled_s
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
        if hedge_s < now_s:
            self._hedge(work, now_s)
        if self._checked_s < now_s - 1.0:
            self._give_up_dead(now_s)

    def _watched(self) -> dict[int, Link]:
        """The links by file number, as the poller has them: an idle one tells when its shard dies."""
        if self._polled_changes != self._changes:
            self._poller, self._polled_changes = select.poll(), self._changes
            self._polled = {link.fileno(): link for link in self._links.values()}
            for fd in self._polled:
                self._poller.register(fd, select.POLLIN)
        for fd, link in self._polled.items():
            if link.is_blocked or link.was_blocked:
                self._poller.modify(fd, select.POLLIN | (select.POLLOUT if link.is_blocked else 0))
                link.was_blocked = link.is_blocked
        return self._polled

    def _take(self, work: LayerWork, frame: Frame) -> None:
        call = work.calls.pop(frame.call, None)
        if call is None:
            return  # the late answer of a shard that was overtaken by another copy
        if frame.kind is not Kind.REPLY:
            log.warning("shard %s could not answer: %s", call.link.shard, bytes(frame.body).decode(errors="replace"))
            self._drop_copy(work.layer, call)
            return
        if frame.body is call.place:
            work.missing.difference_update(call.experts)
        else:
            work.fill(call.experts, decode_reply(frame.body, work.x_TD.dtype, call.rows, work.y_PD.shape[1]))
        per_row_s = (time.monotonic() - call.sent_s) / call.rows
        self._row_s += 0.1 * (min(per_row_s, 2.0 * self._row_s + USUAL_S) - self._row_s)

    def _drop_copy(self, layer: int, call: PendingCall) -> None:
        """A shard lacks an expert that the table says it has: ask others until the next table."""
        self.failovers += 1
        bad = {(layer, expert) for expert in call.experts}
        experts = {
            key: tuple(s for s in names if s != call.link.shard) if key in bad else names
            for key, names in self._routing.experts.items()
        }
        self._routing = Routing(self._routing.epoch, self._routing.shards, experts)
        self._changes += 1

    def _lose(self, link: Link, error: OSError) -> None:
        """A shard hung up: the next round sends its calls to the other copies."""
        log.warning("lost shard %s: %s", link.shard, error)
        self.failovers += 1
        link.close()
        self._links.pop(link.shard, None)
        self._changes += 1
        self._wake.set()

    def _hedge(self, work: LayerWork, now_s: float) -> None:
        """Ask another copy as well where one has been slow; nobody twice, as they may all be busy."""
        for number, call in [(n, c) for n, c in work.calls.items() if c.hedge_s < now_s and not c.hedged]:
            call.hedged, call.place = True, None
            call.link.divert(number)
            late = work.missing.intersection(call.experts)
            asked = {c.link.shard for c in work.calls.values() if not late.isdisjoint(c.experts)}
            chosen, _ = self._choose(work.layer, work.rows(late), asked)
            for shard, experts in chosen.items():
                self.hedges += 1
                self._send_one(work, shard, experts)

    def _give_up_dead(self, now_s: float) -> None:
        """Hang up on shards that do not answer at all; looked for once a second."""
        self._checked_s = now_s
        for link in list(self._links.values()):
            oldest_s = link.oldest_s()
            if oldest_s is not None and oldest_s < now_s - DEAD_S:
                self._lose(link, TimeoutError(f"no answer for {DEAD_S:g} s"))


def _close(links: Iterable[Link]) -> None:
    for link in links:
        link.close()
