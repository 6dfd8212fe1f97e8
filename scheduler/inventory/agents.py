"""What agents say, and what operators want of their nodes."""

from __future__ import annotations

from typing import Any

from scheduler.domain import events
from scheduler.domain.changing import changed
from scheduler.domain.cluster import Lease, LeaseKey, LeaseState, Node, NodeState, ReclaimRecord
from scheduler.domain.reasons import Reason, Refused
from scheduler.inventory.effects import AskReclaim, Leave
from scheduler.inventory.holding import (
    drain,
    end_lease,
    fence,
    hold_back,
    join_if_possible,
    open_if_spare,
    set_node,
)
from scheduler.inventory.records import Records


def connected(r: Records, e: events.AgentConnected) -> None:
    """An agent is there, with or without the lease that its node had. Raises Refused for a second agent of a node."""
    known = r.nodes.get(e.node)
    _require_only_agent(r, e, known)
    if known and known.agent_connected:
        known = _suspect(r, known)
    lease = r.live_lease_of(e.node)
    resumes = bool(lease and known and lease.key.epoch == e.epoch and known.agent_instance == e.instance)
    if lease and not resumes:
        end_lease(r, lease, "lost: its agent came back without it")
    r.suspect_since.pop(e.node, None)
    node = changed(
        known or Node(e.node, e.site, NodeState.BUSY, e.devices),
        site=e.site,
        devices=e.devices,
        address=e.address,
        agent_instance=e.instance,
        agent_connected=True,
        last_report_s=r.now_s,
    )
    r.log("agent_connected", f"agent of {e.node} connected, epoch {e.epoch}", node=e.node, site=e.site)
    if lease and resumes:
        _resume(r, node, lease)
        return
    set_node(r, changed(node, spare_devices=()), NodeState.BUSY)
    if e.epoch:
        _leave_stale(r, node, e.epoch)


def _require_only_agent(r: Records, e: events.AgentConnected, known: Node | None) -> None:
    if known is None:
        return
    if known.agent_connected and known.agent_instance != e.instance:
        raise Refused(
            Reason(
                "already_registered",
                f"node {e.node} already has a connected agent (instance {known.agent_instance}).",
                "Stop the other agent, or give this one another --node name.",
            )
        )
    if known.site != e.site and r.live_lease_of(e.node):
        raise Refused(
            Reason(
                "node_of_another_site",
                f"node {e.node} has a live lease at site {known.site}, not {e.site}.",
                "Wait until that lease has ended, or give this node another --node name.",
            )
        )


def _resume(r: Records, node: Node, lease: Lease) -> None:
    draining = lease.state is LeaseState.DRAINING
    set_node(r, node, NodeState.DRAINING if draining else NodeState.LENT)
    if lease.released_s is not None:
        r.effects.append(Leave(lease, lease.drain_cause))
    elif draining:
        grace_s = max(0.0, (lease.deadline_s or r.now_s) - r.now_s)
        r.effects.append(AskReclaim(lease, grace_s, lease.drain_cause))
    elif lease.state is LeaseState.JOINING:
        join_if_possible(r, lease)


def _leave_stale(r: Records, node: Node, epoch: int) -> None:
    key = LeaseKey(node.id, epoch)
    stale = r.leases.get(key) or Lease(
        key, node.site, LeaseState.ENDED, (), node.address, r.now_s, "", ended_s=r.now_s, end_cause="unknown"
    )
    fence(r, f"agent of {node.id} still holds epoch {epoch}, which is over: told to leave", node=node.id)
    r.effects.append(Leave(stale, "stale lease"))


def _suspect(r: Records, node: Node) -> Node:
    r.suspect_since[node.id] = r.now_s
    return set_node(r, changed(node, agent_connected=False), NodeState.SUSPECT)


def disconnected(r: Records, e: events.AgentDisconnected) -> None:
    """An agent's stream broke: nothing new is placed on its node until it is back."""
    node = r.nodes.get(e.node)
    if node is None or not node.agent_connected or node.agent_instance != e.instance:
        fence(r, f"an agent of {e.node} that is no longer the node's own went away", node=e.node)
        return
    _suspect(r, node)
    r.log("agent_disconnected", f"agent of {e.node} is away", node=e.node, site=node.site)


def reported(r: Records, e: events.NodeReported) -> None:
    """What an agent judges spare: leases open, and what the node's lease is known to be like changes."""
    node = r.nodes.get(e.node)
    if node is None or not node.agent_connected or node.agent_instance != e.instance:
        fence(r, f"a report of {e.node} by an agent that is not the node's own", node=e.node)
        return
    lease = r.live_lease_of(e.node)
    if e.epoch and (lease is None or lease.key.epoch != e.epoch):
        _leave_stale(r, node, e.epoch)
        return
    node = _describe(r, node, e)
    if lease:
        _update_lease(r, lease, e)
    elif e.epoch == 0:
        _offer(r, node)


def _describe(r: Records, node: Node, e: events.NodeReported) -> Node:
    """Take in a report; one that says nothing new is not saved."""
    beat: dict[str, Any] = {
        "last_report_s": r.now_s,
        "agent_rss_bytes": e.agent_rss_bytes,
        "agent_cpu_fraction": e.agent_cpu_fraction,
    }
    said = (e.spare_devices, e.source, e.reason, e.grace_s, e.expected_end_s)
    if said == (node.spare_devices, node.source, node.reason, node.grace_s, node.expected_end_s):
        r.nodes[node.id] = changed(node, **beat)
        return r.nodes[node.id]
    news = changed(
        node,
        **beat,
        spare_devices=e.spare_devices,
        source=e.source,
        reason=e.reason,
        grace_s=e.grace_s,
        expected_end_s=e.expected_end_s,
    )
    r.put(news)
    if set(news.spare_devices) != set(node.spare_devices):
        message = f"{e.source}: {len(e.spare_devices)} of {len(node.devices)} devices are spare, {e.reason}"
        r.log("node_reported", message, node=node.id, site=node.site)
    return news


def _update_lease(r: Records, lease: Lease, e: events.NodeReported) -> None:
    drawn_j = e.energy_j - r.energy_j.get(lease.key, 0.0)
    if drawn_j > 0 and e.epoch == lease.key.epoch:
        r.energy_j[lease.key] = e.energy_j
        r.books.add_energy(str(lease.key), drawn_j)
    known = (lease.grace_s, lease.expected_end_s)
    if known != (e.grace_s, e.expected_end_s) and lease.state is not LeaseState.DRAINING:
        r.put(changed(lease, grace_s=e.grace_s, expected_end_s=e.expected_end_s))


def _offer(r: Records, node: Node) -> None:
    state = NodeState.SPARE if node.spare_devices else NodeState.BUSY
    if node.state is not state:
        node = set_node(r, node, state)
    open_if_spare(r, node)


def reclaimed(r: Records, e: events.NodeReclaimed) -> None:
    """The owner wants the node back."""
    lease = r.leases.get(e.lease)
    if lease is None or not lease.is_live:
        fence(r, f"reclaim of {e.lease}, which is over", node=e.lease.node)
        return
    drain(r, lease, e.deadline_s, e.cause)
    r.put(changed(r.leases[e.lease], grace_s=e.grace_s))


def raylet_started(r: Records, e: events.RayletStarted) -> None:
    """A raylet that cannot start gives the node back, for a while."""
    lease = r.leases.get(e.lease)
    if lease is None or not lease.is_live:
        fence(r, f"news of the raylet of {e.lease}, which is over", node=e.lease.node)
        return
    if not e.error:
        r.log("raylet_started", f"the raylet of {e.lease} started", node=e.lease.node, site=lease.site)
        return
    r.log("raylet_failed", f"the raylet of {e.lease} cannot start: {e.error}", node=e.lease.node, site=lease.site)
    drain(r, lease, r.now_s, "raylet_failed")


def left(r: Records, e: events.NodeLeft) -> None:
    """The node is its owner's again."""
    lease = r.leases.get(e.lease)
    if lease is None or not lease.is_live:
        fence(r, f"{e.lease} was left, and is already over", node=e.lease.node)
        return
    if e.cause == "reclaimed":
        record = ReclaimRecord(e.lease.node, r.now_s, lease.grace_s, e.free_s, lease.drain_cause or e.cause, e.killed)
        r.add_reclaim(record)
        for job in sorted({worker.job for worker in r.workers_on(e.lease)}):
            r.put(changed(r.jobs[job], losses_by_reclaim=r.jobs[job].losses_by_reclaim + 1))
    if e.cause == "raylet_died" or lease.drain_cause in ("raylet_failed", "raylet_died"):
        hold_back(r, e.lease.node)
    end_lease(r, lease, e.cause)
    node = r.nodes[e.lease.node]
    if node.state in (NodeState.LENT, NodeState.DRAINING):
        r.move(node, NodeState.BUSY, spare_devices=())


def drain_requested(r: Records, e: events.DrainRequested) -> None:
    """An operator asks for a node. Raises Refused if there is no such node, or nothing of ours on it."""
    lease = r.live_lease_of(e.node)
    if e.node not in r.nodes:
        raise Refused(Reason("unknown_node", f"there is no node {e.node}.", "See `fallow nodes` for their names."))
    if lease is None:
        state = r.nodes[e.node].state
        raise Refused(Reason("not_lent", f"node {e.node} is {state}, not lent.", "There is nothing to drain."))
    cause = e.cause or "drained by an operator"
    drain(r, lease, r.now_s + e.grace_s, cause)
    r.effects.append(AskReclaim(r.leases[lease.key], e.grace_s, cause))
