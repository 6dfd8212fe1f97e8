"""The host's cores in groups, for nodes without accelerators."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from agents.probes import Device, ProbeFailed, Usage
from agents.probes.people import OtherUsers

_TICKS = os.sysconf("SC_CLK_TCK")


class CpuProbe:
    """`groups` groups of `cores` cores each (0: the allowed cores, shared out), with `memory_bytes` each.

    By default one group of all cores that this process may use, with half of the machine's memory: the node is lent
    as a whole while it is idle. Groups may be larger than the machine: several nodes on one machine are lent so.
    """

    kind = "cpu"

    def __init__(
        self, groups: int = 1, cores: int = 0, memory_bytes: int = 0, others: OtherUsers | None = None
    ) -> None:
        """With `others`, only what other users run counts as use; without, whatever the agent did not start."""
        self.groups, self._others = groups, others
        self.cores = cores or max(1, len(os.sched_getaffinity(0)) // groups)
        self.memory_bytes = memory_bytes or _memory_bytes() // 2 // groups
        self._last: tuple[float, float, float] | None = None

    def devices(self) -> tuple[Device, ...]:
        """The groups: cpu:0, cpu:1, ..."""
        model = _model()
        return tuple(
            Device(f"cpu:{index}", "cpu", model, self.memory_bytes, self.cores) for index in range(self.groups)
        )

    def usage(self, ours: frozenset[int]) -> Mapping[str, Usage]:
        """Cores that others kept busy since the last call, as a part of all cores; the same for every group.

        The first call has nothing to compare with and says that all are busy.
        """
        if self._others is not None:
            cores = self._others.cores(time.monotonic())
            return self._same(1.0 if cores is None else min(1.0, cores / (os.cpu_count() or 1)), "other users")
        now, busy_s, our_s = time.monotonic(), _busy_s(), sum(_cpu_s(pid) for pid in ours)
        last, self._last = self._last, (now, busy_s, our_s)
        if last is None or now <= last[0]:
            load = 1.0
        else:
            others_s = (busy_s - last[1]) - max(0.0, our_s - last[2])
            load = min(1.0, max(0.0, others_s / (now - last[0]) / (os.cpu_count() or 1)))
        return self._same(load, "others")

    def _same(self, load: float, by: str) -> Mapping[str, Usage]:
        usage = Usage(load, f"is used to {load:.0%} by {by}")
        return {f"cpu:{index}": usage for index in range(self.groups)}

    def energy_j(self, devices: tuple[str, ...]) -> float:
        """Unknown: the counters of CPUs are readable by root only."""
        return 0.0


def _busy_s() -> float:
    try:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
    except (OSError, ValueError) as error:
        raise ProbeFailed(f"cannot read /proc/stat: {error}") from error
    user, nice, system, _idle, _wait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of its children that it has buried."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return os.uname().machine
