"""Devices and their use: cores from /proc, GPUs through a stand-in for NVML."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import Any

import pytest

from agents.probes import ProbeFailed, find
from agents.probes.cpu import CpuProbe
from agents.probes.nvidia import NvidiaProbe


class Nvml:
    """Two GPUs, as `pynvml` shows them."""

    class NVMLError(Exception):
        """What every call may raise."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.processes: dict[int, list[int]] = {0: [], 1: []}
        self.activity, self.used = 0, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise self.NVMLError(self.broken)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80_000, used=self.used)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self.activity)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid) for pid in self.processes[handle]]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return 5_000 * (handle + 1)


def test_gpus_are_found_with_model_and_memory() -> None:
    devices = NvidiaProbe(Nvml()).devices()
    assert [d.id for d in devices] == ["nvidia:0", "nvidia:1"]
    assert (devices[0].model, devices[0].memory_bytes) == ("NVIDIA H100 80GB HBM3", 80_000)


def test_while_nothing_is_lent_any_sign_of_use_counts() -> None:
    nvml = Nvml()
    probe = NvidiaProbe(nvml)
    assert probe.usage(frozenset())["nvidia:0"].load == 0
    nvml.activity = 60
    assert probe.usage(frozenset())["nvidia:0"].load == 0.6
    nvml.activity, nvml.used = 0, 40_000  # memory held at no activity
    assert probe.usage(frozenset())["nvidia:0"].load == 0.5
    nvml.used = 2_000  # what a driver keeps
    assert probe.usage(frozenset())["nvidia:0"].load == 0
    nvml.processes[1] = [1]
    usages = probe.usage(frozenset())
    assert (usages["nvidia:0"].load, usages["nvidia:1"].load) == (0, 1)


def test_while_lent_only_processes_of_others_count() -> None:
    nvml = Nvml()
    nvml.activity, nvml.used = 100, 70_000
    ours = os.getpid()
    nvml.processes[0] = [ours, 4_194_304]  # the second is no process of this machine's view
    probe = NvidiaProbe(nvml)
    assert probe.usage(frozenset({ours}))["nvidia:0"].load == 0
    nvml.processes[0].append(os.getppid())
    assert probe.usage(frozenset({ours}))["nvidia:0"].load == 1


def test_energy_is_in_joules() -> None:
    assert NvidiaProbe(Nvml()).energy_j(("nvidia:0", "nvidia:1")) == 15.0


def test_a_missing_driver_is_a_reason_and_the_cores_are_lent() -> None:
    broken = NvidiaProbe(Nvml("Driver Not Loaded"))
    probe, devices, failures = find((broken, CpuProbe(groups=2, cores=3, memory_bytes=7)))
    assert probe.kind == "cpu"
    assert [(d.id, d.cores, d.memory_bytes) for d in devices] == [("cpu:0", 3, 7), ("cpu:1", 3, 7)]
    assert failures == ("nvidia: NVML says: Driver Not Loaded",)
    with pytest.raises(ProbeFailed, match="Driver Not Loaded"):
        find((broken,))


def test_a_driver_that_comes_back_is_seen_again() -> None:
    nvml = Nvml("Driver Not Loaded")
    probe = NvidiaProbe(nvml)
    with pytest.raises(ProbeFailed):
        probe.usage(frozenset())
    nvml.broken = ""
    assert probe.usage(frozenset())["nvidia:0"].load == 0


def test_the_real_library_raises_nothing_but_a_reason() -> None:
    with contextlib.suppress(ProbeFailed):
        assert all(device.kind == "nvidia" for device in NvidiaProbe().devices())


def test_by_default_the_machine_is_one_device_with_half_its_memory() -> None:
    (device,) = CpuProbe().devices()
    assert device.cores == len(os.sched_getaffinity(0))
    assert 0 < device.memory_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert device.model


def test_use_of_cores_is_what_others_did_since_the_last_look() -> None:
    probe = CpuProbe(groups=2)
    assert {u.load for u in probe.usage(frozenset()).values()} == {1.0}  # nothing to compare with yet
    usages = probe.usage(frozenset())
    assert set(usages) == {"cpu:0", "cpu:1"}
    assert all(0 <= u.load <= 1 for u in usages.values())
