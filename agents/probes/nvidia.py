"""NVIDIA GPUs through NVML. Its library is loaded at the first look: the driver may be missing, or come later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from agents.probes import Device, ProbeFailed, Usage

_IDLE_MEMORY_FRACTION = 0.05
"""Memory that a driver or a display keeps on a GPU that nobody uses."""


class NvidiaProbe:
    """All GPUs of the node. `library` stands in for `pynvml` in tests."""

    kind = "nvidia"

    def __init__(self, library: Any = None) -> None:
        self._given, self._nvml = library, None

    def devices(self) -> tuple[Device, ...]:
        """nvidia:0, nvidia:1, ... with the memory that the maker states."""
        nvml = self._library()
        cores = len(os.sched_getaffinity(0))
        try:
            count = nvml.nvmlDeviceGetCount()
            return tuple(self._device(nvml, index, max(1, cores // count)) for index in range(count))
        except nvml.NVMLError as error:
            raise self._failed(error) from error

    def usage(self, ours: frozenset[int]) -> Mapping[str, Usage]:
        """1 for a GPU with a process of others; without processes of ours also its activity and its memory.

        NVML cannot tell whose activity it counts, so while a GPU is lent only the list of its processes speaks.
        """
        nvml = self._library()
        try:
            count = nvml.nvmlDeviceGetCount()
            return {f"nvidia:{index}": self._usage(nvml, index, ours) for index in range(count)}
        except nvml.NVMLError as error:
            raise self._failed(error) from error

    def energy_j(self, devices: tuple[str, ...]) -> float:
        """Sum of the energy counters, which start with the driver; 0 for GPUs before Volta, which have none."""
        try:
            nvml = self._library()
        except ProbeFailed:
            return 0.0
        try:
            handles = (nvml.nvmlDeviceGetHandleByIndex(int(d.partition(":")[2])) for d in devices)
            return float(sum(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles)) / 1000
        except nvml.NVMLError:
            return 0.0

    def _device(self, nvml: Any, index: int, cores: int) -> Device:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
        model = name.decode() if isinstance(name, bytes) else str(name)
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        return Device(f"nvidia:{index}", "nvidia", model, memory, cores)

    def _usage(self, nvml: Any, index: int, ours: frozenset[int]) -> Usage:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        # Ids from outside this container mean nothing here, and may be our own under another number.
        others = [p.pid for p in processes if p.pid not in ours and (not ours or os.path.exists(f"/proc/{p.pid}"))]
        if others:
            return Usage(1.0, f"has {len(others)} process(es) of others, e.g. {others[0]}")
        if ours:
            return Usage(0.0, "has no process of others")
        activity = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        held = memory.used / memory.total
        load = max(activity, held if held > _IDLE_MEMORY_FRACTION else 0.0)
        return Usage(load, f"is {activity:.0%} active and {held:.0%} full")

    def _library(self) -> Any:
        if self._nvml is None:
            nvml = self._given or _import()
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:
                raise self._failed(error) from error
            self._nvml = nvml
        return self._nvml

    def _failed(self, error: Exception) -> ProbeFailed:
        self._nvml = None  # start anew next time: the driver may have been replaced
        return ProbeFailed(f"NVML says: {error}")


def _import() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise ProbeFailed("nvidia-ml-py is not installed: pip install 'fallow[agent]'") from error
    return pynvml
