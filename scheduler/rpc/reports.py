"""Messages of agents and sites, checked and turned into events. Pure. Every function raises `Refused`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol import agent_pb2, site_pb2
from protocol.clocks import PeerClock
from scheduler.domain import events
from scheduler.domain.cluster import LeaseKey
from scheduler.domain.jobs import Role
from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc import checks
from scheduler.rpc.convert import device_from_wire, lease_from_wire, reason_from_wire

WORKER_STATES = ("starting", "running", "slow", "left", "lost")
OUTCOMES = ("done", "failed", "cancelled")


def agent_hello(message: agent_pb2.AgentMessage, at_s: float, cause_id: str) -> events.AgentConnected:
    """The first message of an agent's stream."""
    if message.WhichOneof("body") != "hello":
        raise _not_hello("AgentHello", message.WhichOneof("body"))
    hello = message.hello
    devices = tuple(device_from_wire(device) for device in hello.devices)
    if len({device.id for device in devices}) != len(devices):
        raise checks.invalid("hello.devices", "two devices have one id.", "Give each device an id of its own.")
    return events.AgentConnected(
        at_s=at_s,
        cause_id=cause_id,
        node=checks.name("hello.node", hello.node),
        site=checks.name("hello.site", hello.site),
        instance=checks.name("hello.instance", hello.instance),
        address=checks.text(hello.address),
        devices=devices,
        epoch=checks.count("hello.epoch", hello.epoch),
    )


def agent_event(
    node: str, instance: str, message: agent_pb2.AgentMessage, theirs: PeerClock, at_s: float, cause_id: str
) -> events.Event:
    """Any later message of the agent of `node`, its times by our clock."""
    match message.WhichOneof("body"):
        case "report":
            return _report(node, instance, message.report, theirs, at_s, cause_id)
        case "reclaim":
            reclaim = message.reclaim
            return events.NodeReclaimed(
                at_s=at_s,
                cause_id=cause_id,
                lease=_own_lease(node, "reclaim", reclaim.epoch),
                deadline_s=checks.seconds("reclaim.deadline_s", theirs.here(reclaim.deadline_s)),
                grace_s=checks.seconds("reclaim.grace_s", reclaim.grace_s),
                cause=checks.text(reclaim.cause),
            )
        case "raylet_started":
            started = message.raylet_started
            lease = _own_lease(node, "raylet_started", started.epoch)
            return events.RayletStarted(at_s=at_s, cause_id=cause_id, lease=lease, error=checks.text(started.error))
        case "left":
            left = message.left
            return events.NodeLeft(
                at_s=at_s,
                cause_id=cause_id,
                lease=_own_lease(node, "left", left.epoch),
                cause=checks.text(left.cause),
                free_s=checks.seconds("left.free_s", left.free_s),
                killed=checks.count("left.killed", left.killed),
            )
        case other:
            raise _unexpected("AgentMessage", other)


def site_hello(message: site_pb2.SiteMessage, at_s: float, cause_id: str) -> events.SiteConnected:
    """The first message of a site's session."""
    if message.WhichOneof("body") != "hello":
        raise _not_hello("SiteHello", message.WhichOneof("body"))
    hello = message.hello
    return events.SiteConnected(
        at_s=at_s,
        cause_id=cause_id,
        site=checks.name("hello.site", hello.site),
        instance=checks.name("hello.instance", hello.instance),
        ray_address=checks.text(hello.ray_address),
        ray_token=hello.ray_token,
        ray_version=checks.text(hello.ray_version),
    )


def site_event(message: site_pb2.SiteMessage, at_s: float, cause_id: str) -> events.Event:
    """Any later message of a site that is an event: all but log lines and heartbeats."""
    kind = message.WhichOneof("body") or ""
    if kind not in _SITE_EVENTS:
        raise _unexpected("SiteMessage", kind)
    event: events.Event = _SITE_EVENTS[kind](getattr(message, kind), {"at_s": at_s, "cause_id": cause_id})
    return event


def _report(
    node: str, instance: str, report: agent_pb2.NodeReport, theirs: PeerClock, at_s: float, cause_id: str
) -> events.NodeReported:
    end_s = round(theirs.here(report.expected_end_s)) if report.HasField("expected_end_s") else None
    return events.NodeReported(
        at_s=at_s,
        cause_id=cause_id,
        node=node,
        instance=instance,
        epoch=checks.count("report.epoch", report.epoch),
        spare_devices=tuple(report.spare_devices),
        source=checks.text(report.source),
        reason=checks.text(report.reason),
        grace_s=checks.seconds("report.grace_s", report.grace_s),
        expected_end_s=None if end_s is None else checks.seconds("report.expected_end_s", end_s),
        agent_rss_bytes=checks.finite(report.agent_rss_bytes),
        agent_cpu_fraction=checks.finite(report.agent_cpu_fraction),
        energy_j=max(checks.finite(report.energy_j), 0.0),
    )


def _node_ready(message: site_pb2.NodeReady, when: dict[str, Any]) -> events.NodeReady:
    return events.NodeReady(**when, lease=lease_from_wire(message.lease))


def _node_gone(message: site_pb2.NodeGone, when: dict[str, Any]) -> events.NodeGone:
    return events.NodeGone(**when, lease=lease_from_wire(message.lease))


def _reached(message: site_pb2.AssignmentReached, when: dict[str, Any]) -> events.AssignmentReached:
    return events.AssignmentReached(
        **when,
        job=checks.name("reached.job", message.job),
        revision=checks.count("reached.revision", message.revision),
        width=checks.count("reached.width", message.width),
        cause=checks.text(message.cause),
        stall_s=checks.seconds("reached.stall_s", message.stall_s),
        bytes_moved=checks.count("reached.bytes_moved", message.bytes_moved),
        at_step=checks.count("reached.at_step", message.at_step),
    )


def _refused(message: site_pb2.AssignmentRefused, when: dict[str, Any]) -> events.AssignmentRefused:
    return events.AssignmentRefused(
        **when,
        job=checks.name("refused.job", message.job),
        revision=checks.count("refused.revision", message.revision),
        reason=reason_from_wire(message.reason),
    )


def _worker(message: site_pb2.WorkerChanged, when: dict[str, Any]) -> events.WorkerChanged:
    return events.WorkerChanged(
        **when,
        job=checks.name("worker.job", message.job),
        worker=checks.name("worker.worker", message.worker),
        lease=lease_from_wire(message.lease),
        state=checks.one_of("worker.state", message.state, WORKER_STATES),
        detail=checks.text(message.detail),
    )


def _progress(message: site_pb2.JobProgress, when: dict[str, Any]) -> events.JobProgressed:
    return events.JobProgressed(
        **when,
        job=checks.name("progress.job", message.job),
        step=checks.count("progress.step", message.step),
        total=checks.count("progress.total", message.total),
        loss=message.loss,  # as it is: a loss that is not a number is news
        rate=max(checks.finite(message.rate), 0.0),
        rate_unit=checks.text(message.rate_unit),
        width=checks.count("progress.width", message.width),
        metrics=tuple(sorted((name, checks.finite(value)) for name, value in message.metrics.items())),
        wanted=tuple(sorted((_role(name), checks.count("progress.wanted", n)) for name, n in message.wanted.items())),
    )


def _role(name: str) -> Role:
    return Role(checks.one_of("progress.wanted", name, tuple(role.value for role in Role)))


def _expert_loads(message: site_pb2.ExpertLoads, when: dict[str, Any]) -> events.ExpertsLoaded:
    return events.ExpertsLoaded(**when, job=checks.name("expert_loads.job", message.job), tokens=tuple(message.tokens))


def _work_lost(message: site_pb2.WorkLost, when: dict[str, Any]) -> events.WorkLost:
    return events.WorkLost(
        **when,
        job=checks.name("work_lost.job", message.job),
        steps=checks.count("work_lost.steps", message.steps),
        seconds=checks.seconds("work_lost.seconds", message.seconds),
        cause=checks.text(message.cause),
    )


def _ended(message: site_pb2.JobEnded, when: dict[str, Any]) -> events.JobEnded:
    return events.JobEnded(
        **when,
        job=checks.name("ended.job", message.job),
        outcome=checks.one_of("ended.outcome", message.outcome, OUTCOMES),
        message=checks.text(message.message),
        output=checks.text(message.output),
    )


def _endpoint(message: site_pb2.JobEndpoint, when: dict[str, Any]) -> events.EndpointOpened:
    return events.EndpointOpened(**when, job=checks.name("endpoint.job", message.job), url=checks.text(message.url))


_SITE_EVENTS: dict[str, Callable[[Any, dict[str, Any]], events.Event]] = {
    "node_ready": _node_ready,
    "node_gone": _node_gone,
    "reached": _reached,
    "refused": _refused,
    "worker": _worker,
    "progress": _progress,
    "expert_loads": _expert_loads,
    "work_lost": _work_lost,
    "ended": _ended,
    "endpoint": _endpoint,
}


def _own_lease(node: str, field: str, epoch: int) -> LeaseKey:
    return LeaseKey(node, checks.count(f"{field}.epoch", epoch, 1))


def _not_hello(wanted: str, got: str | None) -> Refused:
    what = f"The first message is {got or 'empty'} where {wanted} must be."
    return Refused(Reason("malformed_message", what, "Say hello first: use the same version of Fallow on both sides."))


def _unexpected(kind: str, got: str | None) -> Refused:
    what = f"An {kind} is {got or 'empty'}, which this scheduler does not understand here."
    return Refused(Reason("malformed_message", what, "Use the same version of Fallow on both sides."))
