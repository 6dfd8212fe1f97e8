"""Carrying out a switch: meet, move state, become the new generation.

Until everyone has everything, nobody's live state changes; a switch that breaks leaves each worker with what it had.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.moe.experts import ExpertId
from runtime.training.checkpoints import read_items, read_position
from runtime.training.generation import DENSE, Generation, Item, Switch
from runtime.training.group import Group
from runtime.training.orders import Orders
from runtime.training.snapshots import Snapshots
from runtime.training.state import Position, TrainState


@dataclass
class Standing:
    """What a worker is now: its live state is that of `generation`, its group may be open or broken."""

    state: TrainState
    snapshots: Snapshots
    generation: Generation | None = None
    group: Group | None = None
    has_state: bool = False

    def close(self) -> None:
        """Leave the group, breaking it for those who still wait."""
        if self.group is not None:
            self.group.close()
            self.group = None


@dataclass(frozen=True)
class Entry:
    """How a switch went for one worker."""

    is_member: bool
    bytes_received: int
    moving_s: float  # from when everyone had met to when this worker had, and had given, everything


@dataclass(frozen=True)
class _Supply:
    """What a worker brings to a switch."""

    items: dict[Item, Tensor]
    position: Position | None  # None: it holds nothing of the source


def enter(switch: Switch, worker: str, standing: Standing, seed: int, address: str, orders: Orders) -> Entry:
    """Become part of (or leave) the switch's generation. Raises `PeerLost` with live state as it was."""
    supply = _supply(switch, worker, standing, seed)
    union = _union(switch, worker, standing, address, orders)
    standing.group = union  # so that whoever closes this standing breaks the switch for the others too
    before = union.bytes_received
    position = _agree(union, supply.position)
    started_s = time.monotonic()
    received = _move(switch, worker, standing.state, supply, union)
    moving_s = time.monotonic() - started_s
    union.barrier()
    moved = union.bytes_received - before
    if worker not in switch.generation.workers:
        standing.close()
        return Entry(False, moved, moving_s)
    _take_over(switch, worker, standing, supply, received, position)
    if switch.participants != switch.generation.workers:
        standing.group = _connect(switch, "members", switch.generation.workers, worker, address, standing, orders)
        union.close()
    return Entry(True, moved, moving_s)


def _supply(switch: Switch, worker: str, standing: Standing, seed: int) -> _Supply:
    source, state = switch.source, standing.state
    if source.kind == "live":
        if not standing.has_state or standing.generation is None or standing.generation.number != source.generation:
            return _Supply({}, None)
        return _Supply({DENSE: state.buffer(DENSE), **{k: state.buffer(k) for k in state.experts}}, state.position)
    if source.kind == "snapshot":
        try:
            copy = standing.snapshots.find(source.step, source.generation)
        except KeyError:
            return _Supply({}, None)
        return _Supply(dict(copy.buffers), copy.position)
    if worker not in switch.generation.workers:
        return _Supply({}, None)
    mine = switch.generation.member(worker).slot.experts
    if source.kind == "checkpoint":
        return _from_checkpoint(source.path, mine)
    state.fresh(mine, seed)
    return _Supply({DENSE: state.buffer(DENSE), **{k: state.buffer(k) for k in mine}}, Position())


def _from_checkpoint(folder: str, experts: tuple[ExpertId, ...]) -> _Supply:
    return _Supply(dict(read_items(folder, (DENSE, *experts))), Position(*read_position(folder)))


def _union(switch: Switch, worker: str, standing: Standing, address: str, orders: Orders) -> Group:
    group, generation = standing.group, standing.generation
    if group is not None and group.is_open and generation is not None and switch.participants == generation.workers:
        return group  # nobody joins: the old group serves for the hand-over
    return _connect(switch, "all", switch.participants, worker, address, standing, orders)


def _connect(
    switch: Switch,
    which: str,
    workers: tuple[str, ...],
    worker: str,
    address: str,
    standing: Standing,
    orders: Orders,
) -> Group:
    device = torch.device(standing.state.device)
    prefix = f"{switch.number}/{which}"
    return Group.connect(
        switch.store,
        prefix,
        workers.index(worker),
        len(workers),
        address,
        device,
        cancelled=lambda: orders.is_over(switch.number),
        called_off=lambda: orders.is_cancelled(switch.number),
    )


def _agree(union: Group, position: Position | None) -> Position:
    """Joiners learn where training is. Those who hold state all say the same."""
    told = (position or Position(-1, -1)).as_tensor()
    union.all_reduce(told, dist.ReduceOp.MAX)
    return Position(*told.tolist())


def _move(switch: Switch, worker: str, state: TrainState, supply: _Supply, union: Group) -> dict[Item, Tensor]:
    ranks = {participant: rank for rank, participant in enumerate(switch.participants)}
    received: dict[Item, Tensor] = {}
    sends, receives = [], []
    for tag, move in enumerate(switch.moves):
        if move.giver == worker:
            sends.append((supply.items[move.item], ranks[move.taker], tag))
        elif move.taker == worker:
            received[move.item] = state.blank(move.item)
            receives.append((received[move.item], ranks[move.giver], tag))
    union.exchange(sends, receives)
    return received


def _take_over(
    switch: Switch,
    worker: str,
    standing: Standing,
    supply: _Supply,
    received: dict[Item, Tensor],
    position: Position,
) -> None:
    state = standing.state
    has = {**supply.items, **received}
    if has[DENSE] is not state.buffer(DENSE):
        state.dense.load(has[DENSE])
    mine = switch.generation.member(worker).slot.experts
    is_copied = switch.source.kind == "snapshot"  # a snapshot stays what it was
    state.hold({k: has[k].clone() if is_copied and k not in received else has[k] for k in mine}, position)
    standing.snapshots.drop_after(position.step)
    standing.generation, standing.has_state = switch.generation, True
