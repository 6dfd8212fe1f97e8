"""A task job's output folder: `results.jsonl` with exactly one line an item, and what each item wrote under `logs/`.

A line is appended by one write and synced; a crash can leave at most a last line without its end, which is cut off
when the file is opened again, so the item runs once more. Own failures are kept beside it, in the site's folder.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class LineFile:
    """JSON lines that are there whole or not at all. Blocking; one writer."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.path = path
        self.lines = self._read()

    def _read(self) -> list[dict[str, Any]]:
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        if torn:
            log.warning("%s: a crash left half a line, which is cut off", self.path)
            os.ftruncate(self._descriptor, len(whole) + 1 if whole else 0)
        return [json.loads(line) for line in whole.splitlines()]

    def append(self, record: dict[str, Any]) -> None:
        """Add a line, durably. Raises OSError, e.g. when the disk is full; the file then is as it was."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(f"{self.path}: no space left for another line")
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Results:
    """What is known of a job's items, on disk. Blocking."""

    def __init__(self, job: str, output: Path, folder: Path) -> None:
        """`folder` is the site's own for this job. Raises OSError, or ValueError if the output is another job's."""
        self.output = output
        (output / "logs").mkdir(parents=True, exist_ok=True)
        _claim(output, job)
        self._lines = LineFile(output / "results.jsonl")
        self._failures = LineFile(folder / "failures.jsonl")
        by_item = {line["item"]: line["state"] for line in self._lines.lines}
        self.done = {item for item, state in by_item.items() if state == "done"}
        self.failed = {item for item, state in by_item.items() if state == "failed"}
        self.tries = Counter(line["item"] for line in self._failures.lines)

    def keep_output(self, item: int, stdout: str, stderr: str) -> None:
        """Keep what the item's newest try wrote."""
        for suffix, text in (("out", stdout), ("err", stderr)):
            (self.output / "logs" / f"{item}.{suffix}").write_text(text)

    def keep_failure(self, item: int, error: str) -> None:
        """The item failed of its own and will be tried again."""
        self._failures.append({"item": item, "error": error})

    def keep(self, record: dict[str, Any]) -> None:
        """The item's one line: it is over."""
        self._lines.append(record)

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        self._failures.close()


def _claim(output: Path, job: str) -> None:
    """A folder takes the results of one job: an older job's would pass for this one's."""
    with (output / ".fallow-job").open("a+") as mark:
        mark.seek(0)
        owner = mark.read().strip()
        if not owner:
            mark.write(job)
    if owner not in ("", job):
        raise ValueError(f"{output} holds the results of job {owner}: give another folder, or remove that one")
