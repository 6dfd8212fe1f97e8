"""Weekly windows in which a node is lent, such as nights and weekends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from agents.spare import Judgement, Now

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM = re.compile(r"([a-z,\- ]+?)\s+(\d\d?):(\d\d)\s*-\s*(\d\d?):(\d\d)")
_WEEK_MIN = 7 * 24 * 60


class InvalidSchedule(ValueError):
    """Windows or a time zone that cannot be read; the message shows the right form."""


@dataclass(frozen=True, slots=True)
class Window:
    """On each of `days` (0: Monday) from minute `start` of the day; past midnight where `end` is not later."""

    days: frozenset[int]
    start: int
    end: int

    @property
    def minutes(self) -> int:
        """Length."""
        return (self.end - self.start) % (24 * 60) or 24 * 60


def parse_window(text: str) -> Window:
    """Read "mon-fri 19:00-07:00" or "sat,sun 00:00-24:00". Raises InvalidSchedule."""
    match = _FORM.fullmatch(text.strip().lower())
    if not match:
        raise InvalidSchedule(f'window {text!r}: write it like "mon-fri 19:00-07:00" or "sat,sun 00:00-24:00"')
    start, end = (_minute(text, match[i], match[i + 1]) for i in (2, 4))
    if start == 24 * 60:
        raise InvalidSchedule(f"window {text!r}: a window starts at 23:59 at the latest")
    return Window(frozenset(_days(text, match[1])), start, end)


def _minute(text: str, hour: str, minute: str) -> int:
    value = int(hour) * 60 + int(minute)
    if int(minute) > 59 or value > 24 * 60:
        raise InvalidSchedule(f"window {text!r}: {hour}:{minute} is no time of day")
    return value


def _days(text: str, names: str) -> set[int]:
    days: set[int] = set()
    for part in names.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise InvalidSchedule(f"window {text!r}: {part!r} is no day; days are {', '.join(_DAYS)}")
        start, span = _DAYS.index(first), (_DAYS.index(last or first) - _DAYS.index(first)) % 7
        days.update((start + i) % 7 for i in range(span + 1))
    return days


def minutes_left(windows: Sequence[Window], weekday: int, minute: float) -> float | None:
    """How long the windows stay open from this minute of this weekday on; None outside them all, inf if always.

    Windows that touch or overlap are one.
    """
    at = weekday * 24 * 60 + minute
    left = 0.0
    while left < _WEEK_MIN:
        more = max((_left_of(w, (at + left) % _WEEK_MIN) for w in windows), default=0.0)
        if more <= 0:
            return left or None
        left += more
    return float("inf")


def _left_of(window: Window, at: float) -> float:
    since = (min((at - day * 24 * 60 - window.start) % _WEEK_MIN for day in window.days)) if window.days else _WEEK_MIN
    return max(0.0, window.minutes - since)


class Schedule:
    """Everything is spare inside the windows, read in the time zone `zone`."""

    name = "schedule"

    def __init__(self, devices: tuple[str, ...], windows: Sequence[Window], zone: tzinfo) -> None:
        self.devices, self.windows, self.zone = devices, tuple(windows), zone

    async def judge(self, now: Now) -> Judgement:
        """All devices inside a window, with its end."""
        local = datetime.fromtimestamp(now.unix_s, self.zone)
        left = minutes_left(self.windows, local.weekday(), local.hour * 60 + local.minute + local.second / 60)
        if left is None:
            return Judgement((), self.name, f"outside the weekly windows (it is {local:%a %H:%M %Z})")
        if left == float("inf"):
            return Judgement(self.devices, self.name, "the weekly windows are always open")
        end = _later(local, left)
        ends_at = now.mono_s + end.timestamp() - now.unix_s
        return Judgement(self.devices, self.name, f"inside a weekly window until {end:%a %H:%M %Z}", ends_at)


def _later(local: datetime, minutes: float) -> datetime:
    """`minutes` later by the clock on the wall, which daylight saving may make more or fewer minutes away."""
    zone = local.tzinfo
    wall = local.replace(tzinfo=None) + timedelta(minutes=minutes)
    return wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)


def make_schedule(devices: tuple[str, ...], windows: Sequence[str], zone: str, file: Path | None) -> Schedule:
    """A schedule of the given windows and those of a YAML file:

        timezone: Europe/Berlin
        windows: ["mon-fri 19:00-07:00", "sat,sun 00:00-24:00"]

    Raises InvalidSchedule.
    """
    texts = list(windows)
    if file:
        zone_of_file, more = _read_file(file)
        zone, texts = zone or zone_of_file, texts + more
    if not texts:
        raise InvalidSchedule('give --window "mon-fri 19:00-07:00", or --schedule-file')
    return Schedule(devices, [parse_window(text) for text in texts], _zone(zone))


def _zone(name: str) -> tzinfo:
    try:
        if name:
            return ZoneInfo(name)
        with open("/etc/localtime", "rb") as file:  # unlike a fixed offset, it knows of summer time
            return ZoneInfo.from_file(file)
    except (OSError, ValueError, KeyError) as error:
        if name:
            problem = f"{name!r} is no time zone of this machine: write one such as Europe/Berlin"
            raise InvalidSchedule(problem) from error
        return UTC


def _read_file(file: Path) -> tuple[str, list[str]]:
    import yaml

    try:
        said = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidSchedule(f"{file}: {error}") from error
    if not isinstance(said, dict) or set(said) - {"timezone", "windows"}:
        raise InvalidSchedule(f"{file}: write timezone and windows, and nothing else")
    windows, zone = said.get("windows", []), said.get("timezone", "")
    if not isinstance(windows, list) or not all(isinstance(w, str) for w in windows) or not isinstance(zone, str):
        raise InvalidSchedule(f"{file}: windows must be a list of texts, timezone a text")
    return zone, windows
