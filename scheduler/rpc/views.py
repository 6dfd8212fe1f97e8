"""What clients are shown: jobs, nodes and books as messages. Pure: each reads the inventory as it is now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from protocol import client_pb2 as pb
from scheduler.domain.changes import LogRow
from scheduler.domain.cluster import Lease, LeaseKey, Node, ReclaimRecord
from scheduler.domain.jobs import Job, RescaleRecord, Worker, WorkerSlot
from scheduler.domain.ledger import Account, AccountKey
from scheduler.domain.reasons import Reason, Refused
from scheduler.inventory import Inventory
from scheduler.rpc.checks import invalid
from scheduler.rpc.convert import device_to_wire, lease_to_wire, reason_to_wire, slot_to_wire

RECLAIMS_SHOWN = 20
"""Hand-backs shown of each node, newest last."""

HIDDEN = "(hidden)"
"""What stands for a secret."""

_KEYS: dict[str, Callable[[AccountKey], str]] = {
    "job": lambda key: key.job,
    "node": lambda key: key.node,
    "site": lambda key: key.site,
    "user": lambda key: key.user,
}


def find_job(inventory: Inventory, wanted: str) -> Job:
    """The job with this id, else the only live one of this name, else the newest ended one of it.

    Raises `Refused`: not_found, or ambiguous_name.
    """
    if wanted in inventory.jobs:
        return inventory.jobs[wanted]
    named = sorted((job for job in inventory.jobs.values() if job.name == wanted), key=lambda job: job.submitted_s)
    live = [job.id for job in named if job.state.is_live]
    if len(live) > 1:
        message = f"job: {len(live)} live jobs are named {wanted!r}: {', '.join(live)}."
        raise Refused(Reason("ambiguous_name", message, "Give one of these ids."))
    if not named:
        remedy = "See `fallow jobs --all` for names and ids."
        raise Refused(Reason("not_found", f"job: there is no job {wanted[:100]!r}.", remedy))
    return inventory.jobs[live[0]] if live else named[-1]


def job_view(job: Job, inventory: Inventory, unplaced: Mapping[str, Reason], secrets: bool) -> pb.Job:
    """A job with everything that belongs to it. Without `secrets` its spec does not tell the key of its endpoint."""
    lines = (account for account in inventory.accounts.values() if account.key.job == job.id)
    view = _job_view(job, inventory, unplaced, lines)
    view.spec_json = job.spec_json if secrets else _without_key(job.spec_json)
    return view


def _without_key(spec_json: str) -> str:
    spec = json.loads(spec_json)
    serve = spec.get("serve") or {}
    if serve.get("api_key"):
        serve["api_key"] = HIDDEN
    return json.dumps(spec)


def job_views(jobs: Iterable[Job], inventory: Inventory, unplaced: Mapping[str, Reason]) -> list[pb.Job]:
    """Many jobs, without their specs."""
    lines = _lines(inventory, _KEYS["job"])
    return [_job_view(job, inventory, unplaced, lines.get(job.id, ())) for job in jobs]


def _job_view(job: Job, inventory: Inventory, unplaced: Mapping[str, Reason], accounts: Iterable[Account]) -> pb.Job:
    waiting = unplaced.get(job.id) if job.state.is_live else None
    progress = job.progress
    return pb.Job(
        id=job.id,
        name=job.name,
        kind=job.kind.value,
        state=job.state.value,
        user=job.user,
        width=job.width,
        min_width=job.min_width,
        max_width=job.max_width,
        useful_width=job.useful_width,
        submitted_s=job.submitted_s,
        started_s=job.started_s,
        ended_s=job.ended_s,
        step=progress.step,
        total=progress.total,
        loss=progress.loss,
        rate=progress.rate,
        rate_unit=progress.rate_unit,
        message=job.message,
        output=job.output,
        endpoint=job.endpoint,
        waiting=reason_to_wire(waiting) if waiting else None,
        workers=[slot_to_wire(s, inventory.leases) for s in job.assignment.workers] if job.assignment else (),
        rescales=[rescale_view(record) for record in job.rescales],
        device_seconds=device_seconds(accounts),
        steps_lost=job.steps_lost,
        metrics=dict(progress.metrics),
    )


def rescale_view(record: RescaleRecord) -> pb.Rescale:
    """One rescale."""
    return pb.Rescale(
        at_s=record.at_s,
        cause=record.cause,
        width=record.width,
        stall_s=record.stall_s,
        bytes_moved=record.bytes_moved,
        at_step=record.at_step,
        steps_lost=record.steps_lost,
    )


def event_view(row: LogRow, job: pb.Job | None) -> pb.JobEvent:
    """One row of the event log, with the job after it."""
    return pb.JobEvent(
        sequence=row.sequence, at_s=row.at_s, kind=row.kind, message=row.message, caused_by=row.cause_id, job=job
    )


def node_views(inventory: Inventory, site: str) -> list[pb.Node]:
    """Nodes of a site, or of all, by name."""
    leases = {lease.key.node: lease for lease in inventory.leases.values() if lease.is_live}
    workers: dict[LeaseKey, list[Worker]] = {}
    for worker in inventory.workers.values():
        if worker.is_live:
            workers.setdefault(worker.lease, []).append(worker)
    reclaims: dict[str, list[ReclaimRecord]] = {}
    for record in inventory.reclaims:
        reclaims.setdefault(record.node, []).append(record)
    accounts = _lines(inventory, _KEYS["node"])
    nodes = sorted((n for n in inventory.nodes.values() if site in ("", n.site)), key=lambda n: n.id)
    return [
        _node_view(node, leases.get(node.id), workers, reclaims.get(node.id, ()), accounts.get(node.id, ()), inventory)
        for node in nodes
    ]


def device_seconds(accounts: Iterable[Account]) -> pb.DeviceSeconds:
    """The sum of some lines of the books."""
    lines = tuple(accounts)
    return pb.DeviceSeconds(
        borrowed=sum(line.borrowed_us for line in lines) / 1e6,
        useful=sum(line.useful_us for line in lines) / 1e6,
        rescale=sum(line.rescale_us for line in lines) / 1e6,
        idle=sum(line.idle_us for line in lines) / 1e6,
        lost=sum(line.lost_us for line in lines) / 1e6,
    )


def usage_view(inventory: Inventory, by: str) -> pb.UsageResponse:
    """The books by job, node, site or user. Raises `Refused` for any other word."""
    if by not in _KEYS:
        raise invalid("by", f"{by!r} is not a way to sum the books.", f"Choose one of {', '.join(_KEYS)}.")
    lines = _lines(inventory, _KEYS[by])
    rows = [
        pb.UsageRow(
            key=key,
            device_seconds=device_seconds(lines[key]),
            energy_j=sum(account.energy_mj for account in lines[key]) / 1e3,
        )
        for key in sorted(lines)
    ]
    return pb.UsageResponse(rows=rows, total=device_seconds(inventory.accounts.values()))


def _lines(inventory: Inventory, key: Callable[[AccountKey], str]) -> dict[str, list[Account]]:
    lines: dict[str, list[Account]] = {}
    for account in inventory.accounts.values():
        lines.setdefault(key(account.key), []).append(account)
    return lines


def _node_view(
    node: Node,
    lease: Lease | None,
    workers: Mapping[LeaseKey, list[Worker]],
    reclaims: Iterable[ReclaimRecord],
    accounts: Iterable[Account],
    inventory: Inventory,
) -> pb.Node:
    held = sorted(workers.get(lease.key, ()), key=lambda worker: worker.id) if lease else []
    return pb.Node(
        id=node.id,
        site=node.site,
        state=node.state.value,
        devices=[device_to_wire(device) for device in node.devices],
        spare_devices=node.spare_devices,
        source=node.source,
        reason=node.reason,
        lease=lease_to_wire(lease.key) if lease else None,
        lease_state=lease.state.value if lease else "",
        lease_started_s=lease.started_s if lease else None,
        expected_end_s=lease.expected_end_s if lease else node.expected_end_s,
        deadline_s=lease.deadline_s if lease else None,
        grace_s=node.grace_s,
        last_report_s=node.last_report_s,
        workers=[slot_to_wire(_slot(worker, inventory), inventory.leases) for worker in held],
        device_seconds=device_seconds(accounts),
        agent_rss_bytes=node.agent_rss_bytes,
        agent_cpu_fraction=node.agent_cpu_fraction,
        address=node.address,
        reclaims=[
            pb.Reclaim(at_s=r.at_s, grace_s=r.grace_s, free_s=r.free_s, cause=r.cause, killed=r.killed)
            for r in list(reclaims)[-RECLAIMS_SHOWN:]
        ],
    )


def _slot(worker: Worker, inventory: Inventory) -> WorkerSlot:
    """The worker's place in its job's assignment; one that is leaving has none any more."""
    job = inventory.jobs.get(worker.job)
    slots = job.assignment.workers if job and job.assignment else ()
    found = next((slot for slot in slots if slot.worker == worker.id), None)
    return found or WorkerSlot(worker.id, worker.role, worker.lease, worker.devices)
