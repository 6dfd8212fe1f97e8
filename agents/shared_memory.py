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


def remove(paths: set[str], since_s: float) -> None:
    """Remove those of the files that are this user's own and were made at `since_s` (file time) or later."""
    for path in paths:
        try:
            found = os.stat(path)
            if found.st_uid == os.getuid() and found.st_ctime >= since_s:
                os.unlink(path)
        except OSError:
            continue
