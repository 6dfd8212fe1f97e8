"""The node's own use: a device is spare while nobody else uses it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from agents import process_tree
from agents.probes import Probe, ProbeFailed, Usage
from agents.spare import Judgement, Now
from agents.spare.asking import off_loop
from agents.spare.hysteresis import Thresholds, Verdict, judge


class Host:
    """Judges by what a probe sees of use by others: processes outside the agent's own tree."""

    name = "host"

    def __init__(self, probe: Probe, devices: tuple[str, ...], thresholds: Thresholds) -> None:
        self.probe, self.devices, self.thresholds = probe, devices, thresholds
        self._verdicts = dict.fromkeys(devices, Verdict())

    async def judge(self, now: Now) -> Judgement:
        """Devices that have been free of others for long enough. A probe that fails makes nothing spare."""
        try:
            usages = await off_loop(self._usage)
        except ProbeFailed as failure:
            return Judgement((), self.name, f"cannot see who uses this node: {failure}")
        for device in self.devices:
            load = usages[device].load if device in usages else 1.0
            self._verdicts[device] = judge(self._verdicts[device], load, now.mono_s, self.thresholds)
        spare = tuple(d for d in self.devices if self._verdicts[d].spare)
        return Judgement(spare, self.name, self._reason(spare, usages))

    def _usage(self) -> Mapping[str, Usage]:
        return self.probe.usage(_below(os.getpid()))

    def _reason(self, spare: tuple[str, ...], usages: Mapping[str, Usage]) -> str:
        kept = [d for d in self.devices if d not in spare]
        if not kept:
            return "not used by others"
        words = "; ".join(f"{d} {usages[d].what if d in usages else 'is no longer there'}" for d in kept[:3])
        return f"{words}; spare after {self.thresholds.spare_after_s:g} s below {self.thresholds.spare_below:.0%}"


def _below(agent: int) -> frozenset[int]:
    """All processes that came of this agent: it and its keepers adopt every orphan. Cheap while there are none."""
    try:
        with open(f"/proc/{agent}/task/{agent}/children") as file:
            if not file.read().strip():
                return frozenset()
    except OSError:  # a kernel without this list
        pass
    return frozenset(process_tree.descendants(agent, process_tree.table()))
