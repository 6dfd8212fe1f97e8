"""What time alone brings about."""

from __future__ import annotations

from scheduler.domain import events
from scheduler.domain.cluster import Lease, LeaseState, NodeState
from scheduler.domain.jobs import Job
from scheduler.inventory.effects import Leave
from scheduler.inventory.holding import drain, drain_from_s, end_lease, lose_node, open_if_spare, rebook, set_node
from scheduler.inventory.records import Records
from scheduler.planning.exploring import has_more_to_show

BOOK_EVERY_S = 10.0
"""The books of all leases are brought up to date this often."""

LOOK_EVERY_S = 30.0
"""Jobs that wait, are explored, have a deadline or a budget are weighed anew this often, whatever else happens."""

RESTART_EXTRA_S = 15.0
"""After a restart of the scheduler agents get so much longer to come back: they may be pausing before the next try."""

KEEP_ENDED_S = 600.0
"""Ended leases stay in memory this long."""


def tick(r: Records, e: events.Tick) -> None:
    """Lose what was silent too long, drain what expires, try again what was held back."""
    _lose_silent_nodes(r)
    for lease in _that_may_expire(r):
        _expire(r, lease)
    for node in [n for n, not_before_s in sorted(r.not_before.items()) if not_before_s <= r.now_s]:
        del r.not_before[node]
        open_if_spare(r, r.nodes[node])
    for job in [j for j, held in sorted(r.withheld.items()) if held.until_s <= r.now_s]:
        del r.withheld[job]
        r.version += 1
    _look_again(r)
    _forget_old_leases(r)


def _look_again(r: Records) -> None:
    """Time alone changes what waiting, late and budgeted jobs are worth: plan anew now and then."""
    if r.now_s < r.next_look_s:
        return
    r.next_look_s = r.now_s + LOOK_EVERY_S
    r.shares.note(r.books.used_us, r.now_s)
    jobs = [r.jobs[job] for job in r.live_jobs]
    if any(_changes_with_time(job, r.now_s) for job in jobs):
        r.version += 1


def _changes_with_time(job: Job, now_s: float) -> bool:
    """Whether a plan may be another one though nothing has happened."""
    has_terms = job.deadline_s is not None or job.budget_device_s is not None
    return not job.width or has_terms or has_more_to_show(job, now_s)


def _lose_silent_nodes(r: Records) -> None:
    for node, since_s in sorted(r.suspect_since.items()):
        if since_s is None:  # the scheduler has just started: agents get their time to come back from now on
            r.suspect_since[node] = r.now_s + RESTART_EXTRA_S
        elif r.now_s - since_s > r.lease_ttl_s:
            lose_node(r, r.nodes[node], f"lost: its agent was away for {r.lease_ttl_s:.0f} s")


def _that_may_expire(r: Records) -> list[Lease]:
    """Live leases of which time may have brought something about: few of a large machine's."""
    now_s, every_s = r.now_s, r.book_every_s
    return [
        lease
        for lease in r.live_leases()
        if now_s - lease.booked_until_s >= every_s
        or lease.state is LeaseState.DRAINING
        or lease.expected_end_s is not None
    ]


def _expire(r: Records, lease: Lease) -> None:
    if r.now_s - lease.booked_until_s >= r.book_every_s:
        rebook(r, lease.key)
        lease = r.leases[lease.key]
    if lease.state is LeaseState.DRAINING:
        _end_if_overdue(r, lease)
    elif lease.expected_end_s is not None and drain_from_s(lease) <= r.now_s:
        drain(r, lease, lease.expected_end_s, "expiry")


def _end_if_overdue(r: Records, lease: Lease) -> None:
    """Whatever the agent does at the deadline, its time is up; books must not wait for ever."""
    if lease.deadline_s is None or r.now_s <= lease.deadline_s + r.lease_ttl_s:
        return
    r.effects.append(Leave(lease, "overdue"))
    end_lease(r, lease, "overdue")
    node = r.nodes[lease.key.node]
    if node.state is NodeState.DRAINING:
        set_node(r, node, NodeState.BUSY)


def _forget_old_leases(r: Records) -> None:
    old = [k for k, lease in r.leases.items() if lease.ended_s is not None and r.now_s - lease.ended_s > KEEP_ENDED_S]
    for key in old:
        if key not in r.dirty.leases:
            r.forget_lease(key)
