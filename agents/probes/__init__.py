"""What devices a node has and who uses them: one small class a kind of device, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class ProbeFailed(Exception):
    """The probe cannot see its devices; the message says why, for the owner to read."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or one group of cores. `memory_bytes` is what a worker on it may use."""

    id: str
    kind: str
    model: str
    memory_bytes: int
    cores: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Use of a device by others than us: `load` from 0 to 1, and in words."""

    load: float
    what: str


class Probe(Protocol):
    """One kind of device. Calls may block for a short while and raise ProbeFailed; nothing else."""

    kind: str

    def devices(self) -> tuple[Device, ...]:
        """The devices that are there; none is no failure."""

    def usage(self, ours: frozenset[int]) -> Mapping[str, Usage]:
        """Use by others, by device id; `ours` are the ids of our own processes, empty while nothing is lent."""

    def energy_j(self, devices: tuple[str, ...]) -> float:
        """Energy that the devices have used since some fixed instant, 0 where unknown."""


def find(probes: tuple[Probe, ...]) -> tuple[Probe, tuple[Device, ...], tuple[str, ...]]:
    """The first probe that sees devices, its devices, and why the ones before it do not. Raises ProbeFailed."""
    failures: list[str] = []
    for probe in probes:
        try:
            devices = probe.devices()
        except ProbeFailed as failure:
            failures.append(f"{probe.kind}: {failure}")
            continue
        if devices:
            return probe, devices, tuple(failures)
    raise ProbeFailed("; ".join(failures) or "no devices")
