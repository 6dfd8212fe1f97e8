"""`jobs.json`: the newest assignment of every job that runs here, so that a restarted site takes them up at once.

Endings are kept too, since the process may die between saying one and its arrival.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from protocol import site_pb2
from runtime.site.files import write_whole

log = logging.getLogger(__name__)

ENDED_LIMIT = 200
"""Endings that are kept; the oldest go first."""


class JobStore:
    """Assignments and endings by job, on disk."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "jobs.json"
        self._assignments: dict[str, site_pb2.Assignment] = {}
        self._ended: dict[str, site_pb2.JobEnded] = {}
        self._load()

    def ended(self) -> list[site_pb2.JobEnded]:
        """The endings, oldest first."""
        return list(self._ended.values())

    def has_ended(self, job: str) -> bool:
        """Whether the job is known to have ended here."""
        return job in self._ended

    def all(self) -> list[site_pb2.Assignment]:
        """Every job's newest assignment, by job id."""
        return [self._assignments[job] for job in sorted(self._assignments)]

    def keep(self, assignment: site_pb2.Assignment) -> None:
        """Take the place of the job's older assignment. Raises OSError, e.g. when the disk is full."""
        self._assignments[assignment.job] = assignment
        self._save()

    def end(self, ended: site_pb2.JobEnded) -> None:
        """The job is over. Raises OSError."""
        self._assignments.pop(ended.job, None)
        self._ended[ended.job] = ended
        if len(self._ended) > ENDED_LIMIT:
            del self._ended[next(iter(self._ended))]
        self._save()

    def _load(self) -> None:
        try:
            saved = json.loads(self._file.read_text())
            running = [
                ParseDict(entry, site_pb2.Assignment(), ignore_unknown_fields=True) for entry in saved["running"]
            ]
            ended = [ParseDict(entry, site_pb2.JobEnded(), ignore_unknown_fields=True) for entry in saved["ended"]]
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, ParseError) as error:
            log.error("%s cannot be read (%s): jobs go on when the scheduler sends them again", self._file, error)
            return
        self._assignments = {assignment.job: assignment for assignment in running}
        self._ended = {message.job: message for message in ended}

    def _save(self) -> None:
        saved = {
            "running": [MessageToDict(self._assignments[job]) for job in sorted(self._assignments)],
            "ended": [MessageToDict(message) for message in self._ended.values()],
        }
        write_whole(self._file, json.dumps(saved), 0o600)
