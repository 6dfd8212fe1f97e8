"""How many nodes Fallow's work could use now, asked of the scheduler."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from agents.batch import short_name
from agents.connection import Peer
from agents.pilots.policy import Work
from protocol import client_pb2 as pb
from protocol.metadata import TOKEN_KEY

ANSWER_S = 10.0
_WANTING = frozenset({"queued", "starting", "running", "parked"})
_ABSENT = frozenset({"suspect", "lost"})
_HOPELESS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)

T = TypeVar("T")


class NoAnswer(Exception):
    """The scheduler does not answer now."""


class NotAllowed(Exception):
    """The scheduler does not let us ask; trying again does not help."""


def node_name(site: str, node: str) -> str:
    """Name at the scheduler of a node of the batch system, whose short name it carries."""
    return f"{site}.{short_name(node)}"


def work(jobs: Sequence[pb.Job], nodes: Sequence[pb.Node], site: str, devices_per_node: int) -> Work:
    """What live jobs could use, less what is lent to them elsewhere.

    The nodes of pilots are told from others by their names; how many devices a node has is learned from them.
    """
    wanted = sum(job.useful_width for job in jobs if job.state in _WANTING)
    prefix = f"{site}."
    ours = [node for node in nodes if node.site == site and node.id.startswith(prefix) and node.source == "pilot"]
    names = {node.id for node in ours}
    elsewhere = sum(len(node.devices) for node in nodes if node.lease_state == "ready" and node.id not in names)
    known = [len(node.devices) for node in ours if node.devices]
    per_node = max(1, min(known, default=devices_per_node))
    at_work = frozenset(node.id.removeprefix(prefix) for node in ours if node.workers)
    present = frozenset(node.id.removeprefix(prefix) for node in ours if node.state not in _ABSENT)
    return Work(math.ceil(max(0, wanted - elsewhere) / per_node), at_work, present)


class Demand:
    """Asks ListJobs and ListNodes over one channel, which is made anew when a call fails."""

    def __init__(self, peer: Peer, site: str, devices_per_node: int) -> None:
        self._peer, self._site, self._devices_per_node = peer, site, devices_per_node
        self._channel: grpc.aio.Channel | None = None

    async def ask(self) -> Work:
        """The work there is now. Raises NoAnswer or NotAllowed."""
        try:
            jobs, nodes = await asyncio.gather(
                self._call("ListJobs", pb.ListJobsRequest(), pb.ListJobsResponse.FromString),
                self._call("ListNodes", pb.ListNodesRequest(), pb.ListNodesResponse.FromString),
            )
        except grpc.aio.AioRpcError as error:
            await self.close()
            if error.code() in _HOPELESS:
                raise NotAllowed(f"the scheduler at {self._peer.address} says: {error.details()}") from error
            raise NoAnswer(f"{error.code().name}: {error.details()}") from error
        except OSError as error:
            await self.close()
            raise NoAnswer(str(error)) from error
        return work(jobs.jobs, nodes.nodes, self._site, self._devices_per_node)

    async def _call(self, method: str, request: Any, read: Callable[[bytes], T]) -> T:
        if self._channel is None:
            self._channel = self._peer.channel()
        call = self._channel.unary_unary(
            f"/fallow.v1.FallowService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=read,
        )
        metadata = ((TOKEN_KEY, f"Bearer {self._peer.token()}"),)
        answer: T = await call(request, metadata=metadata, timeout=ANSWER_S)
        return answer

    async def close(self) -> None:
        """Hang up."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)
