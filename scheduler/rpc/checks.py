"""Values from the wire, checked before they become events: each refusal names the field."""

from __future__ import annotations

import math
import re

from scheduler.domain.reasons import Reason, Refused

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,198}[A-Za-z0-9])?")
LONGEST_TEXT = 8_192


def invalid(field: str, what: str, remedy: str) -> Refused:
    """A refusal of one field's value."""
    return Refused(Reason("invalid_argument", f"{field}: {what}", remedy))


def name(field: str, value: str) -> str:
    """A node's, site's, job's or worker's name."""
    if not _NAME.fullmatch(value):
        shown = value if len(value) <= 60 else value[:60] + "..."
        raise invalid(field, f"{shown!r} is not a name.", "Use letters, digits, '.', '_' and '-', at most 200 of them.")
    return value


def seconds(field: str, value: float, least: float = 0.0) -> float:
    """A finite number of seconds, `least` or more."""
    if not math.isfinite(value) or value < least:
        raise invalid(field, f"{value} is not a number of seconds of at least {least:g}.", "Send a finite number.")
    return value


def finite(value: float) -> float:
    """The number, or 0 where a worker measured none (a rate over no time)."""
    return value if math.isfinite(value) else 0.0


def count(field: str, value: int, least: int = 0) -> int:
    """An integer of at least `least`."""
    if value < least:
        raise invalid(field, f"{value} is less than {least}.", f"Send {least} or more.")
    return value


def text(value: str) -> str:
    """Text for people, cut where it is too long to keep."""
    return value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + " [cut]"


def one_of(field: str, value: str, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in choices:
        raise invalid(field, f"{value!r} is unknown.", f"Send one of {', '.join(choices)}.")
    return value
