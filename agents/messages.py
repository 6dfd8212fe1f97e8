"""The agent's nouns as protobuf messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.decide import SayLeft, SayReclaim
from agents.spare import Judgement, Now
from protocol import agent_pb2 as pb
from protocol import common_pb2

if TYPE_CHECKING:
    from agents.agent import Node


def hello(node: Node, instance: str, epoch: int) -> pb.AgentMessage:
    """Who this is, and which lease it holds."""
    devices = [
        common_pb2.Device(id=d.id, kind=d.kind, model=d.model, memory_bytes=d.memory_bytes, cores=d.cores)
        for d in node.devices
    ]
    said = pb.AgentHello(
        node=node.name,
        site=node.site,
        instance=instance,
        version=node.version,
        devices=devices,
        probe_failures=node.probe_failures,
        address=node.address,
        epoch=epoch,
    )
    return pb.AgentMessage(hello=said)


def node_report(epoch: int, offered: Judgement, now: Now, rss: float, cpu: float, energy_j: float) -> pb.NodeReport:
    """What is spare now, and what the agent costs."""
    said = pb.NodeReport(
        epoch=epoch,
        spare_devices=offered.spare,
        source=offered.source,
        reason=offered.reason,
        grace_s=offered.grace_s or 0.0,
        agent_rss_bytes=rss,
        agent_cpu_fraction=cpu,
        energy_j=energy_j,
    )
    if offered.ends_at is not None:
        said.expected_end_s = now.unix_s + offered.ends_at - now.mono_s
    return said


def gist(said: pb.NodeReport) -> tuple[object, ...]:
    """What makes a report news: all but figures that always move a little."""
    end = round(said.expected_end_s) if said.HasField("expected_end_s") else None
    return said.epoch, tuple(said.spare_devices), said.source, end, said.grace_s


def report(said: pb.NodeReport) -> pb.AgentMessage:
    """A report, wrapped."""
    return pb.AgentMessage(report=said)


def reclaim(said: SayReclaim, deadline_s: float) -> pb.AgentMessage:
    """The owner wants the node back; `deadline_s` is Unix time."""
    return pb.AgentMessage(
        reclaim=pb.ReclaimNotice(epoch=said.epoch, deadline_s=deadline_s, grace_s=said.grace_s, cause=said.cause)
    )


def raylet_started(epoch: int, error: str = "") -> pb.AgentMessage:
    """The raylet listens, or why it does not."""
    return pb.AgentMessage(raylet_started=pb.RayletStarted(epoch=epoch, error=error))


def left(said: SayLeft) -> pb.AgentMessage:
    """Nothing of the lease is left."""
    return pb.AgentMessage(left=pb.NodeLeft(epoch=said.epoch, cause=said.cause, free_s=said.free_s, killed=said.killed))
