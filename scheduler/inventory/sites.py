"""What sites say of themselves and of the raylets in their Ray clusters."""

from __future__ import annotations

from scheduler.domain import events
from scheduler.domain.cluster import Lease, LeaseState, NodeState, Site
from scheduler.domain.jobs import JobState
from scheduler.domain.plan import Assign
from scheduler.domain.reasons import Reason, Refused
from scheduler.inventory.assigning import send
from scheduler.inventory.effects import End, Forget
from scheduler.inventory.holding import drain, fence, join_if_possible, lose_node, lose_worker
from scheduler.inventory.records import Records


def connected(r: Records, e: events.SiteConnected) -> None:
    """A site's session opened: it is told again what it may have missed. Raises Refused for a second one."""
    known = r.sites.get(e.site, Site(e.site))
    if known.connected and known.instance != e.instance:
        raise Refused(
            Reason(
                "already_registered",
                f"site {e.site} already has a connected site process (instance {known.instance}).",
                "Stop the other one, or give this one another --name.",
            )
        )
    new_cluster = bool(known.ray_address) and (known.ray_address, known.ray_token) != (e.ray_address, e.ray_token)
    r.set_site(
        known,
        connected=True,
        instance=e.instance,
        ray_address=e.ray_address,
        ray_token=e.ray_token,
        ray_version=e.ray_version,
    )
    r.log("site_connected", f"site {e.site} connected, Ray at {e.ray_address}", site=e.site)
    _tell_agents(r, e.site, new_cluster)
    _tell_site(r, e.site)


def _tell_agents(r: Records, site: str, new_cluster: bool) -> None:
    for lease in r.live_leases():
        if lease.site != site or lease.state is LeaseState.DRAINING:
            continue
        if new_cluster and lease.state is LeaseState.READY:
            lease = _rejoin(r, lease)
        if lease.state is not LeaseState.READY:
            join_if_possible(r, lease)


def _rejoin(r: Records, lease: Lease) -> Lease:
    for worker in r.workers_on(lease.key):
        lose_worker(r, worker, "the site's Ray cluster was started anew")
    joining: Lease = r.move(r.leases[lease.key], LeaseState.JOINING)
    return joining


def _tell_site(r: Records, site: str) -> None:
    for key, lease in sorted(r.leases.items()):
        if lease.site == site and not lease.is_live:
            r.effects.append(Forget(key, site))
    for job in (r.jobs[j] for j in sorted(r.live_jobs)):
        if job.site != site or job.assignment is None:
            continue
        if job.state is JobState.ENDING:
            r.effects.append(End(job, "cancelled"))
        else:
            send(r, job, r.last_step.get(job.id) or Assign(job.assignment, "start"))


def disconnected(r: Records, e: events.SiteDisconnected) -> None:
    """A site's session broke: nothing is placed there until it is back."""
    site = r.sites.get(e.site)
    if site is None or not site.connected or site.instance != e.instance:
        fence(r, f"a site process of {e.site} that is no longer the site's own went away")
        return
    r.set_site(site, connected=False)
    r.log("site_disconnected", f"site {e.site} is away; its workers go on", site=e.site)


def node_ready(r: Records, e: events.NodeReady) -> None:
    """The site sees the lease's raylet: workers can be placed on it."""
    lease = r.leases.get(e.lease)
    if lease is None or not lease.is_live:
        fence(r, f"the raylet of {e.lease} is up, but the lease is over", node=e.lease.node)
        if lease:
            r.effects.append(Forget(e.lease, lease.site))
        return
    if lease.state is LeaseState.GRANTED:
        lease = r.move(lease, LeaseState.JOINING)
    if lease.state is LeaseState.JOINING:
        r.move(lease, LeaseState.READY)
        r.rejoin_delay.pop(e.lease.node, None)
        r.log("node_ready", f"{e.lease} is ready for workers", node=e.lease.node, site=lease.site)


def node_gone(r: Records, e: events.NodeGone) -> None:
    """The site no longer sees the lease's raylet: whatever ran there is dead."""
    lease = r.leases.get(e.lease)
    if lease is None or not lease.is_live:
        return
    node = r.nodes[e.lease.node]
    if node.state is NodeState.SUSPECT:
        lose_node(r, node, "lost: its agent is away and its raylet died")
        return
    if lease.state not in (LeaseState.READY, LeaseState.DRAINING):
        return
    for worker in r.workers_on(e.lease):
        lose_worker(r, worker, "its raylet died")
    drain(r, r.leases[e.lease], r.now_s, "raylet_died")
