"""The server around the services: health, reflection, ports, TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protocol import client_pb2
from protocol.client_pb2_grpc import FallowServiceStub
from scheduler.domain.reasons import Refused
from scheduler.rpc.server import TlsFiles
from scheduler.serve.addresses import Address, check_exposure, listen, read_address
from tests.rpc.service import Service, database_in, serving

SERVICES = ("fallow.v1.AgentService", "fallow.v1.SiteService", "fallow.v1.FallowService")


async def test_health_needs_no_token_and_names_every_service(service: Service) -> None:
    health = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", *SERVICES):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_describes_every_service(service: Service) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    request = reflection_pb2.ServerReflectionRequest
    call = stub.ServerReflectionInfo(iter([request(list_services=""), request(file_containing_symbol=SERVICES[2])]))
    listed, file = [answer async for answer in call]
    assert set(SERVICES) <= {found.name for found in listed.list_services_response.service}
    described = [FileDescriptorProto.FromString(raw) for raw in file.file_descriptor_response.file_descriptor_proto]
    assert "protocol/client.proto" in {found.name for found in described}


async def test_a_port_that_is_taken_is_named(service: Service, tmp_path: Path) -> None:
    port = int(service.address.rpartition(":")[2])
    with pytest.raises(Refused) as refused:
        listen(Address("--page", "127.0.0.1", port))
    assert f"--page: 127.0.0.1:{port} cannot be listened on" in str(refused.value)
    assert "--page" in refused.value.reason.remedy


@pytest.mark.parametrize("text", ["127.0.0.1:0", "localhost:80", "[::1]:7", "127.9.9.9:1"])
def test_this_machine_needs_no_tls(text: str) -> None:
    check_exposure(read_address("--listen", text), has_tls=False)


@pytest.mark.parametrize("text", ["0.0.0.0:0", "[::]:80", "192.0.2.1:7077", "no-such-host.invalid:1"])
def test_other_addresses_need_tls(text: str) -> None:
    address = read_address("--listen", text)
    with pytest.raises(Refused) as refused:
        check_exposure(address, has_tls=False)
    assert refused.value.reason.code == "exposed_without_tls"
    assert "--tls-cert" in refused.value.reason.remedy
    check_exposure(address, has_tls=True)


@pytest.mark.parametrize("text", ["", "7077", "host", "host:", ":7", "host:x", "host:70000", "host:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Refused) as refused:
        read_address("--page", text)
    assert refused.value.reason.message.startswith("--page: ")


class Authority:
    """A throw-away certificate authority, made with the openssl command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl("req", "-x509", *self._new_key("ca"), "-out", "ca.pem", "-days", "2", "-subj", "/CN=test")

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of `name`, valid for 127.0.0.1 and localhost."""
        self._openssl("req", *self._new_key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (self.folder / "san").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem")
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @property
    def certificate(self) -> Path:
        """What to trust."""
        return self.folder / "ca.pem"

    def _new_key(self, name: str) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(("openssl", *arguments), cwd=self.folder, check=True, capture_output=True, timeout=60)


async def outcome(service: Service, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    """How a call of a client with these credentials ends."""
    async with grpc.aio.secure_channel(service.address, credentials) as channel:
        call = FallowServiceStub(channel).ListJobs(
            client_pb2.ListJobsRequest(), metadata=service.metadata("viewer"), timeout=20
        )
        return await call.code()


async def test_tls_lets_in_who_trusts_the_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = TlsFiles(*authority.issue("scheduler"))
    async with serving(database_in(tmp_path), tls) as service:
        assert (
            await outcome(service, grpc.ssl_channel_credentials(authority.certificate.read_bytes()))
            is grpc.StatusCode.OK
        )
        other = Authority(_folder(tmp_path, "other"))
        assert (
            await outcome(service, grpc.ssl_channel_credentials(other.certificate.read_bytes()))
            is grpc.StatusCode.UNAVAILABLE
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await service.call("ListJobs", client_pb2.ListJobsRequest())  # without TLS


async def test_mutual_tls_asks_clients_for_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = TlsFiles(*authority.issue("scheduler"), authority.certificate)
    trusted = authority.certificate.read_bytes()
    certificate, key = authority.issue("client")
    async with serving(database_in(tmp_path), tls) as service:
        assert await outcome(service, grpc.ssl_channel_credentials(trusted)) is grpc.StatusCode.UNAVAILABLE
        shown = grpc.ssl_channel_credentials(trusted, key.read_bytes(), certificate.read_bytes())
        assert await outcome(service, shown) is grpc.StatusCode.OK


def test_a_tls_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        TlsFiles(tmp_path / "no.pem", tmp_path / "no.key").credentials()
    assert "--tls-key" in str(refused.value)


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name
