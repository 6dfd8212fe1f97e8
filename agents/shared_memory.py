"""Shared memory that killed processes leave in /dev/shm: it would go on taking the owner's memory. Stdlib only."""

from __future__ import annotations

import os
from collections.abc import Iterable

_FOLDER = "/dev/shm/"


def mapped_by(pids: Iterable[int]) -> set[str]:
    """Files under /dev/shm that are mapped by any of the processes and still have a name."""
    found: set[str] = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", errors="surrogateescape") as lines:
                found.update(
                    path for line in lines if (path := line[line.find("/") :].rstrip("\n")).startswith(_FOLDER)
                )
        except OSError:
            continue  # gone, or none of ours
    return {path for path in found if not path.endswith(" (deleted)")}


def remove(paths: set[str]) -> None:
    """Remove those of the files that no living process maps any more and that are this user's own."""
    if not paths:
        return
    used = mapped_by(int(name) for name in os.listdir("/proc") if name.isdigit())
    for path in paths - used:
        try:
            if os.stat(path).st_uid == os.getuid():
                os.unlink(path)
        except OSError:
            continue
