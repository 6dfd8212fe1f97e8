"""What goes wrong with a database, said so that a person can mend it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from scheduler.domain.reasons import Reason


class StoreFailed(OSError):
    """The database cannot do what was asked. Nothing of the failed transaction was kept."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(str(reason))


@dataclass(frozen=True, slots=True)
class _Known:
    pattern: str  # in the driver's words
    code: str
    what: str
    remedy: str


_KNOWN = (
    _Known(
        "disk is full|no space left|disk full|53100",
        "disk_full",
        "has no space left",
        "Free disk space there; nothing that was acknowledged is lost.",
    ),
    _Known(
        "database is locked|lock timeout|55P03",
        "database_locked",
        "is locked by another process",
        "Find the process that writes to it (for SQLite: `fuser` on the file) and end its transaction.",
    ),
    _Known(
        "readonly|read-only|permission denied",
        "database_read_only",
        "cannot be written",
        "Give this user write permission on the file and its folder.",
    ),
    _Known(
        "unable to open",
        "database_missing",
        "cannot be opened",
        "Create its folder, or name another place with --db.",
    ),
    _Known(
        "not a database|malformed|disk image",
        "database_damaged",
        "is not a readable database",
        "Restore a backup, or name another file with --db.",
    ),
    _Known(
        "connection (refused|failed|timeout|is bad)|server running|could not connect|server closed|resolve|"
        "timeout expired|password authentication|does not exist|shutting down|terminating connection",
        "database_unreachable",
        "does not answer",
        "Check that the server runs and that host, user, password and database name in --db are right.",
    ),
)


def shown(url: str) -> str:
    """The URL without its password."""
    return make_url(url).render_as_string(hide_password=True)


def explained(error: DBAPIError, url: str) -> StoreFailed:
    """The driver's error in words."""
    text = re.sub(r"\s+", " ", str(error.orig)).strip(" .")
    for known in _KNOWN:
        if re.search(known.pattern, f"{text} {getattr(error.orig, 'sqlstate', '')}", re.IGNORECASE):
            return StoreFailed(Reason(known.code, f"The database {shown(url)} {known.what} ({text}).", known.remedy))
    return StoreFailed(
        Reason("database_failed", f"The database {shown(url)} failed: {text}.", "See its own log for the cause.")
    )


@contextmanager
def speaking_plainly(url: str) -> Iterator[None]:
    """Turns the driver's errors into `StoreFailed`."""
    try:
        yield
    except DBAPIError as error:
        raise explained(error, url) from error
