"""The agent's folder: its lock, which makes an agent the only one there, and the owner's word kept across restarts."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger("fallow.agent")


def prepare(path: Path) -> int:
    """Make the folder and lock it for the life of the process; the open lock. Raises OSError.

    BlockingIOError: another agent has it.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


class OwnersWord:
    """Why the node is withheld, empty while it may be lent.

    Kept on disk as well, so that an agent that is started again does not lend against its owner's word; where the
    disk is full the word holds for this agent's life.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "withheld"
        self.withheld = ""
        with contextlib.suppress(OSError):
            self.withheld = self._file.read_text().strip()

    def withhold(self, reason: str) -> None:
        """Do not lend any more."""
        self.withheld = reason
        try:
            self._file.write_text(reason)
        except OSError as error:
            log.warning("cannot note in %s that the node is withheld: %s", self._file, error)

    def lend(self) -> None:
        """Lend again."""
        self.withheld = ""
        self._file.unlink(missing_ok=True)
