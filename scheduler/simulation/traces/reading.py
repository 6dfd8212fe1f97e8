"""Opens a trace file, plain or gzipped, and picks the reader by what its first lines look like."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from scheduler.simulation.traces import event_log, idle_csv, sacct, swf
from scheduler.simulation.traces.intervals import BadTrace, Trace

Lines = Iterator[tuple[int, str]]
"""(line number from 1, text without its end)"""


class Reader(Protocol):
    """A module that reads one format."""

    def recognises(self, first_line: str, /) -> bool:
        """Whether a file with this first line is of the format."""

    def read(self, file: str, lines: Lines, /) -> Trace:
        """Read the whole file; `file` names it in errors."""


GZIP = b"\x1f\x8b"

READERS: tuple[Reader, ...] = (idle_csv, sacct, event_log, swf)


def read_trace(path: Path) -> Trace:
    """Read a trace of any known format. Raises `BadTrace` with file and line."""
    if _begins_with(path, event_log.DATABASE):
        return event_log.read_database(path)
    first = _first_line(path)
    for reader in READERS:
        if reader.recognises(first):
            return reader.read(path.name, numbered_lines(path))
    raise BadTrace(
        path.name,
        1,
        "not a trace that Fallow reads: it takes 'node,start_s,end_s' tables, Standard Workload Format logs, "
        "`sacct --parsable2` output, and Fallow's own event log: a scheduler's SQLite database, or JSON lines",
    )


def numbered_lines(path: Path) -> Lines:
    """Numbered text lines of a plain or gzipped UTF-8 file. Raises `BadTrace` where it is cut or not text."""
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8") if _begins_with(path, GZIP) else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadTrace(path.name, number + 1, "the gzip file is cut or damaged here: fetch it again") from error
    except UnicodeDecodeError as error:
        raise BadTrace(path.name, number + 1, f"not UTF-8 text ({error.reason})") from error


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except FileNotFoundError as error:
        raise BadTrace(str(path), None, "no such file") from error
    except OSError as error:
        raise BadTrace(str(path), None, f"cannot be read: {error.strerror}") from error


def _first_line(path: Path) -> str:
    for _, line in numbered_lines(path):
        if line.strip():
            return line
    raise BadTrace(path.name, None, "the file is empty")
