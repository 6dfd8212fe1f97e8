"""One process group of a switch or generation: gloo on CPU, NCCL on GPU as well, rendezvous through a TCP store.

Tensors in host memory, and state that moves from worker to worker, always go through gloo. Collectives on GPU tensors
go through NCCL, except where two workers share a GPU, which NCCL refuses: then through host memory too.

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
_CONNECT = timedelta(seconds=CONNECT_S)
COLLECTIVE_S = 180.0
"""Longest that a healthy worker may keep the others waiting; a hung one is killed by the controller long before."""
LOOK_S = 0.1
"""How often whoever waits looks whether the wait was called off."""
_UNANSWERED = "a peer does not answer, and the others were told not to wait for it"


class PeerLost(Exception):
    """A collective failed: a peer died, closed its group, or stayed silent too long."""


def open_store(address: str) -> Any:
    """A rendezvous on a free port of `address`; its `.port` goes into the switch."""
    return dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S))


class Group:
    """Workers that talk in collectives. Not thread-safe; calls must be made in the same order by all members."""

    def __init__(
        self,
        process_group: Any,
        rank: int,
        size: int,
        called_off: Callable[[], bool] = lambda: False,
        nccl: Any = None,
    ) -> None:
        """Once `called_off()`, nobody waits any more: a peer hangs, and its connections may stay open for long."""
        self._group = process_group
        self._nccl = nccl
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

        def make() -> tuple[Any, Any]:
            store = dist.PrefixStore(prefix, dist.TCPStore(*store_at, is_master=False, timeout=_CONNECT))
            return _gloo(store, rank, size, address), _nccl(store, rank, size, device)

        try:
            gloo, nccl = _unless(cancelled, make)
        except (RuntimeError, ValueError) as error:
            raise PeerLost(f"could not form the group {prefix} of {size}: {_first_line(error)}") from error
        return Group(gloo, rank, size, called_off, nccl)

    def close(self) -> None:
        """Drop the connections; whoever waits for this worker gets `PeerLost`."""
        if self._nccl is not None:
            self._nccl.abort()
        last, self._group, self._nccl = [self._group], None, None
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
        near = self._near(x)
        self._wait(near, lambda group: group.allreduce([near], options))
        if near is not x:
            x.copy_(near)

    def all_gather(self, x: Tensor) -> Tensor:
        """Every member's `x`, stacked in rank order, (size, ...)."""
        if self.size == 1:
            return x.unsqueeze(0)
        near = self._near(x)
        parts = [torch.empty_like(near) for _ in range(self.size)]
        self._wait(near, lambda group: group.allgather([parts], [near]))
        return torch.stack(parts).to(x.device)

    def all_to_all(self, x: Tensor, send_rows: Sequence[int], receive_rows: Sequence[int]) -> Tensor:
        """Rows to each member in rank order; returns the rows from each, in rank order."""
        if self.size == 1:
            return x
        near = self._near(x.contiguous())
        out = near.new_empty((sum(receive_rows), *x.shape[1:]))
        options = dist.AllToAllOptions()
        send, receive = list(send_rows), list(receive_rows)
        self._wait(near, lambda group: group.alltoall_base(out, near, receive, send, options))
        return out.to(x.device)

    def exchange(self, sends: Sequence[tuple[Tensor, int, int]], receives: Sequence[tuple[Tensor, int, int]]) -> None:
        """Point to point, all at once: (tensor, peer rank, tag). Tensors are contiguous; both sides know the shapes."""
        arriving = [x if x.is_cpu else torch.empty_like(x, device="cpu") for x, _, _ in receives]
        leaving = [x.cpu() for x, _, _ in sends]  # kept until they have left
        try:
            works = [self._open.recv([x], peer, tag) for x, (_, peer, tag) in zip(arriving, receives, strict=True)]
            works += [self._open.send([x], peer, tag) for x, (_, peer, tag) in zip(leaving, sends, strict=True)]
            _unless(self._called_off, lambda: [work.wait() for work in works])
        except RuntimeError as error:
            raise PeerLost(_first_line(error)) from None
        for arrived, (x, _, _) in zip(arriving, receives, strict=True):
            if arrived is not x:
                x.copy_(arrived)
        self.bytes_received += sum(x.nbytes for x, _, _ in receives)

    def barrier(self) -> None:
        """Return when all members have come here."""
        self.all_reduce(torch.zeros(1))

    @property
    def _open(self) -> Any:
        if self._group is None:
            raise PeerLost("the group is closed")
        return self._group

    def _near(self, x: Tensor) -> Tensor:
        """`x` where a collective can take it: itself, or a copy in host memory."""
        return x if self._nccl is not None else x.cpu()

    def _wait(self, x: Tensor, start: Callable[[Any], Any]) -> None:
        if x.is_cuda:
            torch.cuda.current_stream().synchronize()  # what is computed before it is no waiting
        started = time.monotonic()
        try:
            if x.is_cuda:
                self._finish_on_gpu(start(self._nccl))
            else:
                self._finish(start(self._open))
        except RuntimeError as error:
            raise PeerLost(_first_line(error)) from None
        self.waited_s += time.monotonic() - started

    def _finish_on_gpu(self, work: Any) -> None:
        """Wait for a call of NCCL's, which does not see that a peer died."""
        while not work.is_completed():
            if self._called_off():
                raise PeerLost(_UNANSWERED)
            time.sleep(0)  # gives the lock to the thread that hears of it
        work.wait()

    def _finish(self, work: Any) -> None:
        """Wait for a call's end. Raises RuntimeError if it failed, `PeerLost` if it was called off."""
        while not _ends_within(work, LOOK_S):
            if self._called_off():
                self._is_stuck = True
                raise PeerLost(_UNANSWERED)


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


def _nccl(store: Any, rank: int, size: int, device: torch.device) -> Any:
    """None where there is no use for it, or two members share a GPU."""
    if device.type != "cuda" or size == 1:
        return None
    store.set(f"gpu/{rank}", str(torch.cuda.get_device_properties(device).uuid))
    if len({store.get(f"gpu/{other}") for other in range(size)}) < size:
        return None
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=COLLECTIVE_S)
    return dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)


def _gloo(store: Any, rank: int, size: int, address: str) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = _CONNECT
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    group = dist.ProcessGroupGloo(store, rank, size, options)
    group.set_timeout(timedelta(seconds=COLLECTIVE_S))
    return group


def _first_line(error: BaseException) -> str:
    line = str(error).split("\n")[0]
    return re.sub(r"^\[/[^]]*\] *|\. This is typically.*$", "", line)[:300]
