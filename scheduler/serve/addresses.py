"""Where the scheduler listens: this machine only, unless TLS protects what would travel further."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc.server import port_taken


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT as given on the command line."""

    option: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def at(self, port: int) -> Address:
        """The same host with the port that was chosen, as others can reach it from here."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        return Address(self.option, everywhere.get(self.host, self.host), port)


def read_address(option: str, text: str) -> Address:
    """Parse HOST:PORT or [HOST]:PORT. Raises `Refused` (invalid_address)."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        message = f"{option}: {text!r} is not HOST:PORT."
        raise Refused(Reason("invalid_address", message, "Write 127.0.0.1:7077, for example; port 0 is any free one."))
    return Address(option, host, int(port))


def check_exposure(address: Address, has_tls: bool) -> None:
    """Raises `Refused` (exposed_without_tls) for an address that others can reach, where there is no TLS."""
    if has_tls or _is_loopback(address.host):
        return
    message = (
        f"{address.option}: {address} can be reached from other machines, and tokens would travel there unencrypted."
    )
    remedy = "Give --tls-cert and --tls-key, or listen on 127.0.0.1 (and reach it through `ssh -L`, for example)."
    raise Refused(Reason("exposed_without_tls", message, remedy))


def listen(address: Address) -> socket.socket:
    """A bound socket. Raises `Refused` (port_taken)."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise port_taken(address.option, str(address)) from None
    return listener


def _is_loopback(host: str) -> bool:
    """Whether every address behind the name is this machine's own; a name that is unknown is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(info[4][0]).partition("%")[0]).is_loopback for info in found)
