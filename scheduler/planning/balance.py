# ruff: noqa: N815 - arrays carry their dimensions in fields too
"""Which workers host which experts, and how many copies of each: pure functions on arrays, the same input the same
placement.

Dimensions: L layers, E experts of a layer, W workers, N nodes. A token passes the layers one after another, and each
waits for its busiest worker: so every layer is balanced by itself, and the slots of a worker are dealt out evenly over
the layers. Copies of a pair share its load equally. The busyness of a worker is load / speed over the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler.planning.packing import Bools, Field, Floats, Ints, copies_wanted, deal_slots, fill
from scheduler.planning.swapping import Layer

WORTH = 0.2
"""A layer that is whole is rearranged only if that takes so much off its busiest worker: noise is not worth a move."""
UNSEEN = 0.05
"""Load that any pair may have on other tokens than those counted, over the average."""
FEWEST = 100
"""Tokens that an expert must have got on average before the counts of its layer say anything."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The workers that can host experts. `slots_W`: how many pairs each can hold, over all layers."""

    slots_W: Ints
    speed_W: Floats
    node_W: Ints
    cohort_W: Ints


def busyness(host_LEW: Bools, load_LE: Floats, speed_W: Floats) -> Floats:
    """Load / speed of each worker in each layer [L, W], over what it were if all were equally busy."""
    share_LE = load_LE / np.maximum(host_LEW.sum(axis=2), 1)
    busy_LW = np.einsum("le,lew->lw", share_LE, host_LEW) / speed_W
    mean_L = load_LE.sum(axis=1) / speed_W.sum()
    return np.asarray(busy_LW / np.where(mean_L > 0, mean_L, 1.0)[:, None])


def expected_loads(tokens_LE: Floats) -> Floats:
    """Loads to balance by, from tokens counted [L, E]; a layer that got too few counts as even."""
    mean_L1 = tokens_LE.mean(axis=1, keepdims=True)
    return np.asarray(np.where(mean_L1 >= FEWEST, tokens_LE + UNSEEN * mean_L1, 1.0))


def balance(
    load_LE: Floats,
    hosts: Hosts,
    present_LEW: Bools | None = None,
    *,
    floor: int = 1,
    copies: int | None = None,
    budget: int | None = None,
) -> Bools:
    """Who hosts what [L, E, W].

    Every pair gets `floor` copies while slots suffice, no two on one node, nor in one cohort while another has room;
    what is left of `copies` in all (None: as many as there are slots) goes to the heaviest pairs. Of `present_LEW` all
    stays that has its place and is balanced well enough; a layer that is whole gets no worse. At most `budget` copies
    are new, besides the first copy of a pair that has none. Floor copies lie on few different sets of workers, the same
    in every layer, where that costs no balance: few sets outlive more simultaneous deaths than many.
    """
    layers, experts = load_LE.shape
    if present_LEW is None:
        present_LEW = np.zeros((layers, experts, len(hosts.slots_W)), dtype=np.bool_)
    _, first_N, node_W = np.unique(hosts.node_W, return_index=True, return_inverse=True)
    on_node_WN = node_W[:, None] == np.arange(len(first_N))
    quota_LW = deal_slots(hosts.slots_W, present_LEW.sum(axis=1), experts)
    quota_LN = np.minimum(quota_LW @ on_node_WN, experts)
    present_LEN = present_LEW @ on_node_WN
    floor = min(floor, len(first_N))
    field = Field.of(hosts.speed_W @ on_node_WN, hosts.cohort_W[first_N], present_LEN, floor)
    nodes = Problem(load_LE, quota_LN, floor, field)
    host_LEN, left = nodes.solve(present_LEN, copies, np.inf if budget is None else budget)
    host_LEW = _over_workers(host_LEN, present_LEW, node_W, quota_LW, load_LE, hosts.speed_W, left)
    for layer, load_E in enumerate(load_LE):
        now, then = (_flaws(p_LEW[layer], load_E, quota_LW[layer], hosts, floor) for p_LEW in (host_LEW, present_LEW))
        if then <= now:
            host_LEW[layer] = present_LEW[layer]
    return host_LEW


def _flaws(host_EW: Bools, load_E: Floats, quota_W: Ints, hosts: Hosts, floor: int) -> tuple[int, int, int, float]:
    """What is wrong with a layer, the worst first: copies that may not be where they are, floor copies that it lacks,
    pairs with fewer cohorts than they could have, and how busy its busiest worker is.
    """
    copies_E = host_EW.sum(axis=1)
    nodes_E, cohorts_E = (_groups(host_EW, group_W) for group_W in (hosts.node_W, hosts.cohort_W))
    misplaced = np.maximum(host_EW.sum(axis=0) - quota_W, 0).sum() + (copies_E - nodes_E).sum()
    crowded = (cohorts_E < np.minimum(copies_E, len(np.unique(hosts.cohort_W)))).sum()
    busiest = busyness(host_EW[None], load_E[None], hosts.speed_W).max()
    lacking = (np.maximum(floor - copies_E, 0) ** 2).sum()  # one pair without any copy is worse than two with one
    return int(misplaced), int(lacking), int(crowded), float(busiest)


def _groups(host_EW: Bools, group_W: Ints) -> Ints:
    """On how many nodes, or in how many cohorts, each pair lies [E]."""
    return np.asarray((host_EW @ (group_W[:, None] == np.unique(group_W))).sum(axis=1))


def _over_workers(
    host_LEN: Bools,
    present_LEW: Bools,
    node_W: Ints,
    quota_LW: Ints,
    load_LE: Floats,
    speed_W: Floats,
    left: float,
) -> Bools:
    """The pairs of a node, once each, over its workers: the same problem again."""
    host_LEW = host_LEN[:, :, node_W]
    share_LE = load_LE / np.maximum(host_LEN.sum(axis=2), 1)
    for node in np.flatnonzero(np.bincount(node_W) > 1):
        mine_W, on_LE = node_W == node, host_LEN[:, :, node]
        present_LEM = present_LEW[:, :, mine_W] & on_LE[:, :, None]
        field = Field.of(speed_W[mine_W], np.arange(mine_W.sum()), present_LEM, 1)
        workers = Problem(share_LE * on_LE, quota_LW[:, mine_W], 1, field)
        host_LEW[:, :, mine_W], left = workers.settle(present_LEM, on_LE.astype(np.int64), left)
    return host_LEW


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be balanced over hosts that take a pair once: `quota_LN` pairs of each layer at most."""

    load_LE: Floats
    quota_LN: Ints
    floor: int
    field: Field

    def solve(self, present_LEN: Bools, copies: int | None, budget: float) -> tuple[Bools, float]:
        """Who hosts what, and what is left of the budget."""
        layers, hosts = self.quota_LN.shape
        total_L = self.quota_LN.sum(axis=1)
        if copies is not None:
            total_L = np.minimum(total_L, copies // layers + (np.arange(layers) < copies % layers))
        want_LE = copies_wanted(self.load_LE, total_L, self._within(present_LEN).sum(axis=2), self.floor, hosts)
        return self.settle(present_LEN, want_LE, budget)

    def settle(self, present_LEN: Bools, want_LE: Ints, budget: float) -> tuple[Bools, float]:
        """The present copies, completed to those wanted and, where it is worth it, rearranged; the budget left."""
        host_LEN = self._within(present_LEN)
        self._drop_over(host_LEN, want_LE)
        want_LE, left = _affordable(want_LE, host_LEN.sum(axis=2), self.load_LE, self.floor, budget)
        fill(host_LEN, want_LE, self.load_LE, self.quota_LN, self.field, self.floor)
        for row in np.argsort(-busyness(host_LEN, self.load_LE, self.field.speed_N).max(axis=1), kind="stable"):
            layer = Layer(host_LEN[row], self.load_LE[row], self.quota_LN[row], self.floor, self.field, left)
            _finish(layer, want_LE[row], is_new=not present_LEN[row].any())
            left = layer.left
        return host_LEN, left

    def _within(self, present_LEN: Bools) -> Bools:
        """Of the present copies as many as each host may hold: those that are alone first, then the heaviest."""
        host_LEN = present_LEN.copy()
        for layer, host in np.argwhere(host_LEN.sum(axis=1) > self.quota_LN):
            mine_H = np.flatnonzero(host_LEN[layer, :, host])
            count_H = host_LEN[layer, mine_H].sum(axis=1)
            kept_H = np.lexsort((mine_H, -self.load_LE[layer, mine_H], count_H))[: self.quota_LN[layer, host]]
            host_LEN[layer, np.delete(mine_H, kept_H), host] = False
        return host_LEN

    def _drop_over(self, host_LEN: Bools, want_LE: Ints) -> None:
        """Copies beyond those wanted, first such as share a cohort."""
        for layer, expert in np.argwhere(host_LEN.sum(axis=2) > want_LE):
            while host_LEN[layer, expert].sum() > want_LE[layer, expert]:
                on_N = host_LEN[layer, expert]
                crowd_N = np.where(on_N, (self.field.same_cohort_NN & on_N).sum(axis=1), 0)
                host_LEN[layer, expert, int(crowd_N.argmax())] = False


def _finish(layer: Layer, want_E: Ints, is_new: bool) -> None:
    """Completes, parts and relieves a layer; a layer that was there is relieved only where it is worth the moves."""
    layer.complete(want_E)
    layer.part()
    before_EN, left, busiest = layer.host_EN.copy(), layer.left, layer.busy_N().max()
    layer.relieve()
    if not is_new and layer.busy_N().max() > busiest * (1.0 - WORTH):
        layer.host_EN[:], layer.left = before_EN, left
    layer.part()


def _affordable(want_LE: Ints, have_LE: Ints, load_LE: Floats, floor: int, budget: float) -> tuple[Ints, float]:
    """As many of the missing copies as the budget allows, and what is left of it.

    First copies are free; then second ones, up to the floor; then further ones of the heaviest.
    """
    missing_LE = np.maximum(want_LE - np.maximum(have_LE, 1), 0)
    if missing_LE.sum() <= budget:
        return want_LE, budget - float(missing_LE.sum())
    layer_M, expert_M = (np.repeat(index, missing_LE.ravel()) for index in np.indices(want_LE.shape).reshape(2, -1))
    first_M = np.maximum(have_LE, 1)[layer_M, expert_M]
    starts = np.cumsum(missing_LE.ravel()) - missing_LE.ravel()
    copy_M = first_M + np.arange(len(layer_M)) - np.repeat(starts, missing_LE.ravel()) + 1
    order_M = np.lexsort((-(load_LE[layer_M, expert_M] / copy_M), np.minimum(copy_M, floor + 1)))[: int(budget)]
    afforded_LE = np.maximum(np.minimum(want_LE, have_LE), np.minimum(want_LE, 1))
    np.add.at(afforded_LE, (layer_M[order_M], expert_M[order_M]), 1)
    return afforded_LE, 0.0
