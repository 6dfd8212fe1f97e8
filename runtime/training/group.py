"""One process group of a switch or generation: gloo on CPU, NCCL on GPU, rendezvous through a TCP store.

Groups are objects, not torch's global one, so an old and a new group can live side by side. When any call raises
`PeerLost` the caller closes its group at once: that breaks the connections, and so tells everyone else.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CONNECT_S = 20.0
"""Longest wait for the participants of a switch to come together."""
COLLECTIVE_S = 180.0
"""Longest that a healthy worker may keep the others waiting; a hung one is killed by the controller long before."""
LOOK_S = 0.1
"""How often whoever waits looks whether the wait was called off."""


class PeerLost(Exception):
    """A collective failed: a peer died, closed its group, or stayed silent too long."""


def open_store(address: str) -> Any:
    """A rendezvous on a free port of `address`; its `.port` goes into the switch."""
    return dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S))


class Group:
    """Workers that talk in collectives. Not thread-safe; calls must be made in the same order by all members."""

    def __init__(
        self, process_group: Any, rank: int, size: int, called_off: Callable[[], bool] = lambda: False
    ) -> None:
        """Once `called_off()`, nobody waits any more: a peer hangs, and its connections may stay open for long."""
        self._group = process_group
        self._called_off = called_off
        self._is_stuck = False  # a call was left while it went on
        self.rank = rank
        self.size = size
        self.bytes_received = 0
        self.waited_s = 0.0  # in collectives, transfer included

    @staticmethod
    def connect(
        store_at: tuple[str, int],
        prefix: str,
        rank: int,
        size: int,
        address: str,
        device: torch.device,
        cancelled: Callable[[], bool],
        called_off: Callable[[], bool] = lambda: False,
    ) -> Group:
        """Meet the others under `prefix`. Raises `PeerLost` if they do not come or `cancelled()` turns true."""
        try:
            made = _unless(cancelled, lambda: _process_group(store_at, prefix, rank, size, address, device))
        except (RuntimeError, ValueError) as error:
            raise PeerLost(f"could not form the group {prefix} of {size}: {_first_line(error)}") from error
        return Group(made, rank, size, called_off)

    def close(self) -> None:
        """Drop the connections; whoever waits for this worker gets `PeerLost`."""
        last, self._group = [self._group], None
        if self._is_stuck:  # its end waits for the peer that hangs
            threading.Thread(target=last.clear, name="end of a group", daemon=True).start()

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called."""
        return self._group is not None

    def all_reduce(self, x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        """Sum (or other) over all members, in place."""
        if self.size == 1:
            return
        options = dist.AllreduceOptions()
        options.reduceOp = op
        self._wait(lambda group: group.allreduce([x], options))

    def all_gather(self, x: Tensor) -> Tensor:
        """Every member's `x`, stacked in rank order, (size, ...)."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        if self.size == 1:
            return x.unsqueeze(0)
        self._wait(lambda group: group.allgather([parts], [x]))
        return torch.stack(parts)

    def all_to_all(self, x: Tensor, send_rows: Sequence[int], receive_rows: Sequence[int]) -> Tensor:
        """Rows to each member in rank order; returns the rows from each, in rank order."""
        if self.size == 1:
            return x
        out = x.new_empty((sum(receive_rows), *x.shape[1:]))
        options = dist.AllToAllOptions()
        send, receive = list(send_rows), list(receive_rows)
        self._wait(lambda group: group.alltoall_base(out, x.contiguous(), receive, send, options))
        return out

    def exchange(self, sends: Sequence[tuple[Tensor, int, int]], receives: Sequence[tuple[Tensor, int, int]]) -> None:
        """Point to point, all at once: (tensor, peer rank, tag). Tensors are contiguous; both sides know the shapes."""
        works = []
        try:
            works = [self._open.recv([x], peer, tag) for x, peer, tag in receives]
            works += [self._open.send([x], peer, tag) for x, peer, tag in sends]
            _unless(self._called_off, lambda: [work.wait() for work in works])
        except RuntimeError as error:
            raise PeerLost(_first_line(error)) from None
        self.bytes_received += sum(x.nbytes for x, _, _ in receives)

    def barrier(self) -> None:
        """Return when all members have come here."""
        self.all_reduce(torch.zeros(1))

    @property
    def _open(self) -> Any:
        if self._group is None:
            raise PeerLost("the group is closed")
        return self._group

    def _wait(self, start: Callable[[Any], Any]) -> None:
        started = time.monotonic()
        try:
            self._finish(start(self._open))
        except RuntimeError as error:
            raise PeerLost(_first_line(error)) from None
        self.waited_s += time.monotonic() - started

    def _finish(self, work: Any) -> None:
        """Wait for a call's end. Raises RuntimeError if it failed, `PeerLost` if it was called off."""
        if not isinstance(self._group, dist.ProcessGroupGloo):
            work.wait()  # NCCL takes a limit for a failure
            return
        while not _ends_within(work, LOOK_S):
            if self._called_off():
                self._is_stuck = True
                raise PeerLost("a peer does not answer, and the others were told not to wait for it")


def _ends_within(work: Any, seconds: float) -> bool:
    """Whether a gloo call has succeeded by then. Raises RuntimeError if it failed."""
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        if not work.is_completed():
            return False
        work.wait()  # raises again what it failed with, if it did
    return True


def _unless(cancelled: Callable[[], bool], make: Callable[[], Any]) -> Any:
    """`make()`, given up when `cancelled()`: the wait for a peer that died cannot be interrupted, only left behind."""
    results: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((make(), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=run, name="rendezvous", daemon=True).start()
    while not cancelled():
        with contextlib.suppress(queue.Empty):
            made, error = results.get(timeout=0.02)
            if error is not None:
                raise error
            return made
    raise PeerLost("the switch was called off")


def _process_group(
    store_at: tuple[str, int], prefix: str, rank: int, size: int, address: str, device: torch.device
) -> Any:
    connect = timedelta(seconds=CONNECT_S)
    store = dist.PrefixStore(prefix, dist.TCPStore(*store_at, is_master=False, timeout=connect))
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=COLLECTIVE_S)
        return dist.ProcessGroupNCCL(store, rank, size, options)
    options = dist.ProcessGroupGloo._Options()
    options._timeout = connect
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    group = dist.ProcessGroupGloo(store, rank, size, options)
    group.set_timeout(timedelta(seconds=COLLECTIVE_S))
    return group


def _first_line(error: BaseException) -> str:
    line = str(error).split("\n")[0]
    return re.sub(r"^\[/[^]]*\] *|\. This is typically.*$", "", line)[:300]
