"""Where a serving worker computes, and in which numbers: bf16 on the accelerator that its process sees, else fp32 on
the CPU, where bf16 is slower."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Device:
    """`name` as torch has it."""

    name: str
    dtype: torch.dtype

    @staticmethod
    def here() -> Device:
        """This process's."""
        return Device("cuda", torch.bfloat16) if torch.cuda.is_available() else Device("cpu", torch.float32)

    def free_bytes(self) -> int:
        """Memory that can be had now, without swapping."""
        if self.name == "cuda":
            return torch.cuda.mem_get_info()[0]
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
