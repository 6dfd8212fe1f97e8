"""The gRPC server: services, gate, health, reflection, keep-alive and TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protocol import agent_pb2, client_pb2, site_pb2
from protocol.agent_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from protocol.client_pb2_grpc import FallowServiceServicer, add_FallowServiceServicer_to_server
from protocol.site_pb2_grpc import SiteServiceServicer, add_SiteServiceServicer_to_server
from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc.gate import Gate

LARGEST_MESSAGE = 64 * 1024 * 1024
"""Bytes: an assignment of a model with tens of thousands of experts fits."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # or a second scheduler would quietly share the port
    ("grpc.keepalive_time_ms", 20_000),  # a peer that vanished without a word is noticed in half a minute
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # agents may ping as often as this
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
)

_SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((agent_pb2, "AgentService"), (site_pb2, "SiteService"), (client_pb2, "FallowService"))
)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With an authority, clients must show a certificate that it signed (mutual TLS)."""

    certificate: Path
    key: Path
    authority: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC. Raises `Refused` if a file cannot be read."""
        pair = (_read(self.key, "--tls-key"), _read(self.certificate, "--tls-cert"))
        if self.authority is None:
            return grpc.ssl_server_credentials([pair])
        authority = _read(self.authority, "--tls-ca")
        return grpc.ssl_server_credentials([pair], root_certificates=authority, require_client_auth=True)


class RpcServer:
    """Serves the three services on one address."""

    def __init__(
        self, agents: AgentServiceServicer, sites: SiteServiceServicer, clients: FallowServiceServicer, gate: Gate
    ) -> None:
        self.gate = gate
        self._server = grpc.aio.server(interceptors=(gate,), options=_OPTIONS)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # missing in the stubs
        add_AgentServiceServicer_to_server(agents, self._server)
        add_SiteServiceServicer_to_server(sites, self._server)
        add_FallowServiceServicer_to_server(clients, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, address: str, tls: TlsFiles | None) -> int:
        """Serve on HOST:PORT and return the port, which was chosen if PORT is 0. Raises `Refused`."""
        port = self._bind(address, tls)
        await self._server.start()
        for service in _SERVICES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, let calls end within `grace_s`, then cut them off."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    def _bind(self, address: str, tls: TlsFiles | None) -> int:
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.credentials())
        except RuntimeError:
            port = 0
        if port == 0:
            raise port_taken("--listen", address)
        return port


def port_taken(option: str, address: str) -> Refused:
    """A refusal for an address that cannot be bound."""
    message = f"{option}: {address} cannot be listened on: another process has the port, or the address is not ours."
    remedy = f"Find it with `ss -ltnp`, or choose another port with {option} (port 0: any free one)."
    return Refused(Reason("port_taken", message, remedy))


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{option}: {path} cannot be read: {error.strerror}."
        raise Refused(Reason("invalid_tls_file", message, "Name a PEM file that this user may read.")) from error
