"""The `fallow` command."""

from __future__ import annotations

import os
import sys

PROCESSES = {
    "scheduler": ("scheduler",),
    "site": ("runtime", "site"),
    "agent": ("agents",),
    "simulate": ("scheduler.simulation",),
}
"""Subcommands that become a process of their own: the module, and its first arguments."""


def main() -> None:
    """Run the command line; never returns."""
    starts_pilots = sys.argv[1:2] == ["site"] and "--slurm" in sys.argv
    if len(sys.argv) > 1 and sys.argv[1] in PROCESSES and not starts_pilots:
        os.execv(sys.executable, [sys.executable, "-m", *PROCESSES[sys.argv[1]], *sys.argv[2:]])
    from fallow.cli.app import run

    sys.exit(run())


if __name__ == "__main__":
    main()
