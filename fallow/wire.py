"""From the messages of protocol/client.proto to the results of `fallow.results`."""

from __future__ import annotations

import json

from fallow import results as r
from protocol import client_pb2, common_pb2


def reason(message: common_pb2.Reason) -> r.Reason:
    """One reason."""
    return r.Reason(message.code, message.message, message.remedy)


def device_seconds(message: client_pb2.DeviceSeconds) -> r.DeviceSeconds:
    """One line of the books."""
    return r.DeviceSeconds(message.borrowed, message.useful, message.rescale, message.idle, message.lost)


def worker(message: common_pb2.WorkerSlot) -> r.Worker:
    """One worker of an assignment."""
    return r.Worker(
        message.worker,
        message.role,
        message.lease.node,
        message.lease.epoch,
        tuple(message.devices),
        tuple((e.layer, e.expert) for e in message.experts),
    )


def rescale(message: client_pb2.Rescale) -> r.Rescale:
    """One rescale of a job."""
    return r.Rescale(
        message.at_s,
        message.cause,
        message.width,
        message.stall_s,
        message.bytes_moved,
        message.at_step,
        message.steps_lost,
    )


def job(message: client_pb2.Job) -> r.Job:
    """A job with everything that belongs to it."""
    return r.Job(
        id=message.id,
        name=message.name,
        kind=message.kind,
        state=message.state,
        user=message.user,
        width=message.width,
        min_width=message.min_width,
        max_width=message.max_width,
        submitted_s=message.submitted_s,
        started_s=message.started_s if message.HasField("started_s") else None,
        ended_s=message.ended_s if message.HasField("ended_s") else None,
        step=message.step,
        total=message.total,
        loss=message.loss,
        rate=message.rate,
        rate_unit=message.rate_unit,
        message=message.message,
        output=message.output,
        endpoint=message.endpoint,
        waiting=reason(message.waiting) if message.HasField("waiting") and message.waiting.code else None,
        workers=tuple(worker(w) for w in message.workers),
        rescales=tuple(rescale(x) for x in message.rescales),
        device_seconds=device_seconds(message.device_seconds),
        steps_lost=message.steps_lost,
        metrics=dict(message.metrics),
        spec=json.loads(message.spec_json) if message.spec_json else {},
    )


def job_event(message: client_pb2.JobEvent) -> r.JobEvent:
    """One event of a job."""
    return r.JobEvent(
        message.sequence, message.at_s, message.kind, message.message, message.caused_by, job(message.job)
    )


def log_line(message: client_pb2.LogRecord) -> r.LogLine:
    """One line of a job's log."""
    return r.LogLine(message.at_s, message.worker, message.line)


def device(message: common_pb2.Device) -> r.Device:
    """One device of a node."""
    return r.Device(message.id, message.kind, message.model, message.memory_bytes, message.cores)


def reclaim(message: client_pb2.Reclaim) -> r.Reclaim:
    """One hand-back of a node."""
    return r.Reclaim(message.at_s, message.grace_s, message.free_s, message.cause, message.killed)


def node(message: client_pb2.Node) -> r.Node:
    """A node with everything that belongs to it."""
    return r.Node(
        id=message.id,
        site=message.site,
        state=message.state,
        devices=tuple(device(d) for d in message.devices),
        spare_devices=tuple(message.spare_devices),
        source=message.source,
        reason=message.reason,
        epoch=message.lease.epoch if message.HasField("lease") else None,
        lease_state=message.lease_state,
        lease_started_s=message.lease_started_s if message.HasField("lease_started_s") else None,
        expected_end_s=message.expected_end_s if message.HasField("expected_end_s") else None,
        deadline_s=message.deadline_s if message.HasField("deadline_s") else None,
        grace_s=message.grace_s,
        last_report_s=message.last_report_s,
        workers=tuple(worker(w) for w in message.workers),
        device_seconds=device_seconds(message.device_seconds),
        agent_rss_bytes=message.agent_rss_bytes,
        agent_cpu_fraction=message.agent_cpu_fraction,
        address=message.address,
        reclaims=tuple(reclaim(x) for x in message.reclaims),
    )


def why(message: client_pb2.WhyResponse) -> r.Why:
    """Reasons and last events of a job."""
    return r.Why(
        job(message.job), tuple(reason(x) for x in message.reasons), tuple(job_event(e) for e in message.events)
    )


def usage(message: client_pb2.UsageResponse) -> r.Usage:
    """The books, by row."""
    rows = tuple(r.UsageRow(x.key, device_seconds(x.device_seconds), x.energy_j) for x in message.rows)
    return r.Usage(rows, device_seconds(message.total))


def token(message: client_pb2.TokenInfo) -> r.Token:
    """What is known of a token."""
    expires_s = message.expires_s if message.HasField("expires_s") else None
    return r.Token(message.name, message.role, message.created_s, expires_s)
