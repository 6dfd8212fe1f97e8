"""Plays the owner of a node: asks for it back and watches, from outside, until it is free."""

from __future__ import annotations

import time

from fallow.demo.summary import HandBack
from fallow.errors import FallowError
from fallow.local_cluster import LocalCluster
from fallow.results import Node

_POLL_S = 0.1
_REPORT_TIMEOUT_S = 30.0


def take_back(cluster: LocalCluster, node: str, grace_s: float) -> HandBack:
    """Reclaim a lent node and wait until it is free, or its deadline has passed."""
    before = _find(cluster, node)
    if before.epoch is None:
        raise FallowError(f"{node} is not lent: it is {before.state}.")
    epoch, known = before.epoch, len(before.reclaims)
    asked_s = time.monotonic()
    cluster.reclaim(node, grace_s)
    seen_free_s = _await_free(cluster, node, epoch, asked_s, grace_s)
    strays = len(cluster.lease_processes(node, epoch)) if seen_free_s > grace_s else 0
    return HandBack(node, epoch, grace_s, _reported_s(cluster, node, known), seen_free_s, strays)


def _await_free(cluster: LocalCluster, node: str, epoch: int, asked_s: float, grace_s: float) -> float:
    while True:
        looked_s = time.monotonic() - asked_s
        if not cluster.lease_processes(node, epoch) or looked_s > grace_s + 10.0:
            return looked_s
        time.sleep(_POLL_S)


def _reported_s(cluster: LocalCluster, node: str, known: int) -> float:
    """The time that the agent reported, once the scheduler has it."""
    deadline_s = time.monotonic() + _REPORT_TIMEOUT_S
    while time.monotonic() < deadline_s:
        reclaims = _find(cluster, node).reclaims
        if len(reclaims) > known:
            return max(reclaims, key=lambda r: r.at_s).free_s
        time.sleep(_POLL_S)
    raise FallowError(f"The scheduler never heard that {node} was handed back.", "Read the logs of its agent.")


def _find(cluster: LocalCluster, node: str) -> Node:
    return next(n for n in cluster.client.nodes() if n.id == node)
