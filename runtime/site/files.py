"""The files of a site's folder: its lock, and small ones that a crash at any instant leaves whole."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path


class FolderTaken(Exception):
    """Another process works in the folder."""


class Folder:
    """A site's folder, held by one process at a time. `instance` names the folder, whichever process holds it."""

    def __init__(self, path: Path) -> None:
        """Raises `FolderTaken`, or OSError if the folder cannot be written."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.absolute()
        self._lock = (self.path / "site.lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderTaken(f"another site process works in {self.path}: stop it, or give another --dir") from None
        self._lock.seek(0)
        self.instance = self._lock.read().strip() or self._name_it()

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def _name_it(self) -> str:
        instance = uuid.uuid4().hex
        self._lock.write(instance)
        self._lock.flush()
        return instance


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the file's content at once. Raises OSError, e.g. when the disk is full; the old content then stays."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
