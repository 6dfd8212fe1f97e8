"""Snapshots in memory: every worker keeps a copy of its own state and of its buddy's experts.

The copy before the newest is kept until the newest is known to be complete on every member.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from runtime.moe.experts import ExpertId
from runtime.training.generation import DENSE, Generation, Holding, Item
from runtime.training.group import Group
from runtime.training.memory import room_for
from runtime.training.state import Copy, TrainState


class Snapshots:
    """One worker's snapshots, oldest first, at most two."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._copies: list[Copy] = []

    @property
    def newest(self) -> Copy | None:
        """The last one that is complete here."""
        return self._copies[-1] if self._copies else None

    def holdings(self) -> list[Holding]:
        """What each has, for the controller."""
        return [Holding("snapshot", c.position.step, c.generation, c.items) for c in self._copies]

    def find(self, step: int, generation: int) -> Copy:
        """Raises KeyError if it is no longer (or never was) here."""
        for copy in self._copies:
            if (copy.position.step, copy.generation) == (step, generation):
                return copy
        raise KeyError(f"no snapshot of step {step} of generation {generation} on {self._worker}")

    def take(self, state: TrainState, group: Group, generation: Generation) -> Copy:
        """Copy what is here, exchange experts with buddies; all members call it at one boundary. Raises `PeerLost`."""
        live = [state.dense.flat.buffer, *(piece.flat.buffer for piece in state.experts.values())]
        with room_for("a snapshot of the state", (3, sum(x.shape[1] for x in live)), state.device):
            own: dict[Item, Tensor] = {DENSE: state.dense.flat.buffer.clone()}
            own |= {key: piece.flat.buffer.clone() for key, piece in state.experts.items()}
        copy = Copy(state.position, generation.number, own | self._from_buddies(own, state, group, generation))
        self._copies = [*self._copies[-1:], copy]
        return copy

    def settle(self) -> None:
        """The newest is complete on all members: older ones are of no use any more."""
        self._copies = self._copies[-1:]

    def drop_after(self, step: int) -> None:
        """Training went back to `step`: what came after it never was."""
        self._copies = [c for c in self._copies if c.position.step <= step]

    def _from_buddies(
        self, own: dict[Item, Tensor], state: TrainState, group: Group, generation: Generation
    ) -> dict[Item, Tensor]:
        ranks = {worker: rank for rank, worker in enumerate(generation.workers)}
        me = generation.member(self._worker)
        wards = [m for m in generation.members if m.buddy == self._worker]
        theirs = {key: state.blank(key) for ward in wards for key in ward.slot.experts}
        tags = tag_of(generation)
        sends = [(own[key], ranks[me.buddy], tags[key]) for key in me.slot.experts] if me.buddy else []
        receives = [(theirs[key], ranks[ward.worker], tags[key]) for ward in wards for key in ward.slot.experts]
        group.exchange(sends, receives)
        return dict(theirs)


def tag_of(generation: Generation) -> dict[ExpertId, int]:
    """A message tag for every expert of a generation."""
    keys: Sequence[ExpertId] = sorted(key for member in generation.members for key in member.slot.experts)
    return {key: tag for tag, key in enumerate(keys)}
