# ruff: noqa: N802, N815 - arrays carry their dimensions in fields and methods too
"""Changes of one layer's placement, copy by copy: to complete it, to keep copies apart, to relieve the busiest host.

Dimensions: E experts, N hosts, S the layer's slots in use and, as expert `E`, the free ones; H experts on one host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scheduler.planning.packing import Bools, Field, Floats, Ints

ENOUGH = 1.005
"""Busyness of the busiest host below which nothing is changed for balance any more."""
BETTER = 1e-6
"""Less relief than this is rounding."""


class Exchanges(NamedTuple):
    """What can change places with the experts on one host.

    `mine_H` lie there; `other_S` on `host_S` would come in exchange. `gain_HS`: in how many more cohorts the first
    would lie; the others in no fewer than now.
    """

    mine_H: Ints
    other_S: Ints
    host_S: Ints
    legal_HS: Bools
    gain_HS: Ints


@dataclass(slots=True)
class Layer:
    """One layer; `host_EN` is changed in place. `left`: copies that may still be moved."""

    host_EN: Bools
    load_E: Floats
    quota_N: Ints
    floor: int
    field: Field
    left: float

    @property
    def mean(self) -> float:
        """Load / speed of every host if all were equally busy."""
        return float(self.load_E.sum() / self.field.speed_N.sum()) or 1.0

    def busy_N(self) -> Floats:
        """Load / speed over the mean [N]."""
        return np.asarray(self._share_E()[:-1] @ self.host_EN / self.field.speed_N)

    def complete(self, want_E: Ints) -> None:
        """Copies that are wanted and that no host has room for: another pair moves to make room."""
        for expert in np.flatnonzero(self.host_EN.sum(axis=1) < want_E):
            while self.host_EN[expert].sum() < want_E[expert] and self.left >= 2 and self._make_room(int(expert)):
                self.left -= 2

    def part(self) -> None:
        """Copies that share a cohort move into one without any."""
        near_EN, share_E = self._near_EN(), self._share_E()
        for expert, host in np.argwhere(self.host_EN & (near_EN > 1) & self._crowded_E(near_EN)[:, None]):
            if self.left < 2 or not self.host_EN[expert, host]:
                continue
            swaps = self._exchanges(int(host), np.array([expert]))
            good = np.flatnonzero(swaps.legal_HS[0] & (swaps.gain_HS[0] > 0))
            if len(good):
                best = good[np.argmin(np.abs(share_E[swaps.other_S[good]] - share_E[expert]))]
                self._exchange(int(expert), int(host), int(swaps.other_S[best]), int(swaps.host_S[best]))

    def relieve(self) -> None:
        """Exchanges and re-made copies that relieve the busiest host, the best first, while there are any."""
        while self.left >= 2:
            busy_N = self.busy_N()
            busiest = int(busy_N.argmax())
            if busy_N[busiest] <= ENOUGH or not (self._swap_off(busiest, busy_N) or self._copy_off(busiest, busy_N)):
                return

    # --- what lies where ---------------------------------------------------------------------------------------

    def _share_E(self) -> Floats:
        """Load of each copy, and of none (the last), in units of the mean."""
        share_E = self.load_E / np.maximum(self.host_EN.sum(axis=1), 1) / self.mean
        return np.append(share_E, 0.0)

    def _near_EN(self) -> Floats:
        """How many copies of each pair lie in the cohort of each host."""
        return np.asarray(self.host_EN.astype(np.float32) @ self.field.same_cohort_NN.astype(np.float32))

    def _crowded_E(self, near_EN: Floats) -> Bools:
        """Whether copies share a cohort while another has none."""
        return np.asarray((self.host_EN & (near_EN > 1)).any(axis=1) & (near_EN == 0).any(axis=1))

    def _slots(self) -> tuple[Ints, Ints]:
        """(expert, host) of each slot in use, then of each host with a free one."""
        expert_S, host_S = np.nonzero(self.host_EN)
        free_N = np.flatnonzero(self.host_EN.sum(axis=0) < self.quota_N)
        return np.append(expert_S, np.full(len(free_N), len(self.load_E))), np.append(host_S, free_N)

    # --- one change --------------------------------------------------------------------------------------------

    def _exchange(self, mine: int, host: int, other: int, there: int) -> None:
        self.host_EN[mine, host], self.host_EN[mine, there] = False, True
        if other < len(self.load_E):
            self.host_EN[other, there], self.host_EN[other, host] = False, True
        self.left -= 1 + (other < len(self.load_E))

    def _exchanges(self, host: int, mine_H: Ints) -> Exchanges:
        """All places that `mine_H`, on `host`, could exchange without two copies on a host or fewer cohorts."""
        other_S, host_S = self._slots()
        used_S = other_S < len(self.load_E)
        row_S = np.where(used_S, other_S, 0)
        near_EN, kin_S = self._near_EN(), self.field.same_cohort_NN[host][host_S]
        gain_HS = (near_EN[mine_H][:, host_S] - kin_S == 0).astype(np.int64)
        gain_HS -= near_EN[mine_H, host][:, None] == 1
        other_gain_S = (near_EN[row_S, host] - kin_S == 0).astype(np.int64) - (near_EN[row_S, host_S] == 1)
        other_may_S = ~used_S | (~self.host_EN[row_S, host] & (other_gain_S >= 0))
        legal_HS = ~self.host_EN[mine_H][:, host_S] & other_may_S & (gain_HS >= 0)
        return Exchanges(mine_H, other_S, host_S, legal_HS, gain_HS)

    def _swap_off(self, busiest: int, busy_N: Floats) -> bool:
        swaps = self._exchanges(busiest, np.flatnonzero(self.host_EN[:, busiest]))
        share_E, speed_N = self._share_E(), self.field.speed_N
        less_HS = share_E[swaps.mine_H][:, None] - share_E[swaps.other_S]
        here_HS = busy_N[busiest] - less_HS / speed_N[busiest]
        there_HS = busy_N[swaps.host_S] + less_HS / speed_N[swaps.host_S]
        after_HS = np.where(swaps.legal_HS, np.maximum(here_HS, there_HS), np.inf)
        if after_HS.min(initial=np.inf) >= busy_N[busiest] - BETTER:
            return False
        row, slot = np.unravel_index(after_HS.argmin(), after_HS.shape)
        self._exchange(int(swaps.mine_H[row]), busiest, int(swaps.other_S[slot]), int(swaps.host_S[slot]))
        return True

    def _copy_off(self, busiest: int, busy_N: Floats) -> bool:
        """Another copy of a pair on the busiest host, in the place of a copy over the floor."""
        other_S, host_S = np.nonzero(self.host_EN)
        count_E = self.host_EN.sum(axis=1)
        spare = np.flatnonzero((count_E[other_S] > self.floor) & self._droppable(other_S, host_S))
        other_S, host_S = other_S[spare], host_S[spare]
        mine_H = np.flatnonzero(self.host_EN[:, busiest])
        if not len(other_S) or not len(mine_H):
            return False
        after_HS = self._after_copying(mine_H, other_S, host_S, count_E, busy_N)
        if after_HS.min() >= busy_N[busiest] - BETTER:
            return False
        row, slot = np.unravel_index(after_HS.argmin(), after_HS.shape)
        self.host_EN[other_S[slot], host_S[slot]] = False
        self.host_EN[mine_H[row], host_S[slot]] = True
        self.left -= 1
        return True

    def _after_copying(self, mine_H: Ints, other_S: Ints, host_S: Ints, count_E: Ints, busy_N: Floats) -> Floats:
        """The busiest of the hosts whose load changes if a copy of H takes slot S; inf where it may not [H, S]."""
        load_E = self.load_E / self.mean
        share_H = load_E[mine_H] / (count_E[mine_H] + 1)
        drop_H = load_E[mine_H] / count_E[mine_H] - share_H
        share_S = load_E[other_S] / (count_E[other_S] - 1)
        rise_S = share_S - load_E[other_S] / count_E[other_S]
        change_HSN = self.host_EN[other_S] * rise_S[:, None] - (self.host_EN[mine_H] * drop_H[:, None])[:, None]
        slots = np.arange(len(other_S))
        change_HSN[:, slots, host_S] += share_H[:, None] - share_S
        touched_HSN = np.asarray(self.host_EN[mine_H][:, None] | self.host_EN[other_S])
        after_HS: Floats = np.where(touched_HSN, busy_N + change_HSN / self.field.speed_N, 0.0).max(axis=2)
        near_EN = self._near_EN()
        open_H = np.asarray((near_EN[mine_H] == 0).any(axis=1))  # another cohort has none
        kin_HS = (near_EN[mine_H][:, host_S] > 0) & open_H[:, None]
        return np.where(self.host_EN[mine_H][:, host_S] | kin_HS, np.inf, after_HS)

    def _droppable(self, other_S: Ints, host_S: Ints) -> Bools:
        """Whether what is left would still lie in as many cohorts as it can."""
        near_EN = self._near_EN()
        alone_E = np.asarray(~(self.host_EN & (near_EN > 1)).any(axis=1))
        return np.asarray((near_EN[other_S, host_S] > 1) | alone_E[other_S])

    def _make_room(self, expert: int) -> bool:
        """One more copy of a pair, on a host whose copy of another pair moves to where room is."""
        near_N, share_E = self._near_EN()[expert] > 0, self._share_E()
        for room in np.flatnonzero(self.host_EN.sum(axis=0) < self.quota_N):
            if not self.host_EN[expert, room]:
                self.host_EN[expert, room] = True
                return True
            others, hosts = np.nonzero(self.host_EN & ~self.host_EN[expert] & ~self.host_EN[:, room, None])
            if len(others):
                best = np.lexsort((np.abs(share_E[others] - share_E[expert]), near_N[hosts]))[0]
                self.host_EN[others[best], hosts[best]] = False
                self.host_EN[others[best], room] = True
                self.host_EN[expert, hosts[best]] = True
                return True
        return False
