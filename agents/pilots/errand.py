"""The file by which a pilot knows what it is for: written by `fallow pilots`, read inside each pilot.

It lies on a file system that both share, readable by its user alone, and names the file with the token instead of
holding it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = "pilot.json"
WANTED = "wanted"
"""Exists beside it exactly while there is work: a pilot that does not find it ends."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a pilot needs to know. `agent` are options of the node agent, `notice_s` what the batch system gives."""

    site: str
    scheduler: str
    token_file: str
    notice_s: float
    agent: tuple[str, ...] = ()
    temp_dir: str = ""

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all. Raises OSError."""
        partial = folder / f"{NAME}.partial"
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file, indent=1)
        partial.replace(folder / NAME)


def read(path: Path) -> Errand:
    """The errand in a file. Raises OSError, or ValueError for one that cannot be understood."""
    content = json.loads(path.read_text())
    try:
        return Errand(**{**content, "agent": tuple(content["agent"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is none of this version's: {error}") from error


def is_wanted(folder: Path) -> bool:
    """Whether there is work, as far as the shared file system tells."""
    return (folder / WANTED).exists()


def say_wanted(folder: Path, wanted: bool) -> None:
    """Say whether there is work. Raises OSError."""
    if wanted:
        (folder / WANTED).touch(mode=0o600)
    else:
        (folder / WANTED).unlink(missing_ok=True)
