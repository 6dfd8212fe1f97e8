"""What runs inside a pilot, whatever the batch system."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PilotScript:
    """`command` is the inside of a pilot, less its length. `name` and `user` tell our pilots from other jobs."""

    name: str
    user: str
    command: tuple[str, ...]
    folder: Path  # shared with the nodes; logs go to its log/
    warning_s: float = 0.0  # Slurm: a SIGTERM so long before the end as well; 0: none
    environment: Mapping[str, str] = field(default_factory=dict)

    def line(self, length_s: float) -> str:
        """The command line inside a pilot of this length, quoted for a shell."""
        return shlex.join((*self.command, "--length-s", f"{length_s:g}"))
