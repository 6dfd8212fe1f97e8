"""The books: what became of every borrowed device-second (law 8). Whole microseconds, so that sums are exact.

At each instant a leased device is idle (no worker on it), rescaling (its worker does not run yet, or its job does
not) or useful. Later reports move time that had been called useful to where it belongs: a stall to rescale, work that
must be done again to lost. What was borrowed is counted on its own, from leases' openings and ends alone, so that the
two sides can be compared.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, order=True)
class AccountKey:
    """One line of the books: a node's time under a job; `job` is empty for time in which no job had the device."""

    site: str
    node: str
    job: str
    user: str


@dataclass(frozen=True, slots=True)
class Account:
    """Device-microseconds of one line. Invariant: `borrowed_us == useful_us + rescale_us + idle_us + lost_us`."""

    key: AccountKey
    borrowed_us: int = 0
    useful_us: int = 0
    rescale_us: int = 0
    idle_us: int = 0
    lost_us: int = 0
    energy_mj: int = 0


class Use(StrEnum):
    """What a device does at an instant."""

    IDLE = "idle"
    RESCALE = "rescale"
    USEFUL = "useful"


@dataclass(slots=True)
class _Line:
    """An account that is written to: a busy machine changes thousands a minute."""

    key: AccountKey
    of_use: dict[str, int] = field(default_factory=lambda: {"useful": 0, "rescale": 0, "idle": 0, "lost": 0})
    borrowed_us: int = 0
    energy_mj: int = 0

    @classmethod
    def of(cls, account: Account) -> _Line:
        """As it was saved."""
        uses = (("useful", account.useful_us), ("rescale", account.rescale_us), ("idle", account.idle_us))
        return cls(account.key, {**dict(uses), "lost": account.lost_us}, account.borrowed_us, account.energy_mj)

    def account(self) -> Account:
        """As it stands now."""
        uses = {f"{use}_us": amount_us for use, amount_us in self.of_use.items()}
        return Account(self.key, self.borrowed_us, **uses, energy_mj=self.energy_mj)


@dataclass(slots=True)
class _Span:
    """A device's present use, booked up to `since_us`."""

    line: AccountKey
    use: Use
    since_us: int
    written: _Line | None = None  # the account of `line`, once something was booked there


def whole_us(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * 1e6)


class Books:
    """Running accounts. A device is named by (holder, device), the holder being its lease.

    Times must not go backwards for a device; one that does books nothing.
    """

    def __init__(self, accounts: Iterable[Account] = ()) -> None:
        self._lines: dict[AccountKey, _Line] = {}
        self._spans: dict[str, dict[str, _Span]] = {}
        self._opened: dict[str, tuple[str, int, int]] = {}  # holder -> node, devices, since
        self._ended_us: dict[str, int] = {}  # node -> borrowed by leases that ended
        self._of_job: dict[str, list[tuple[AccountKey, _Line]]] = {}  # sorted
        self._of_job_on: dict[tuple[str, str], list[tuple[AccountKey, _Line]]] = {}  # (job, node) -> sorted
        self._changed: set[AccountKey] = set()
        self._of_user: dict[str, int] = {}  # borrowed
        for account in accounts:
            self._add(_Line.of(account))
            self._count(account.key.user, account.borrowed_us)
            self._ended_us[account.key.node] = self._ended_us.get(account.key.node, 0) + account.borrowed_us

    @property
    def accounts(self) -> Mapping[AccountKey, Account]:
        """All lines, as far as they are booked."""
        return {key: line.account() for key, line in self._lines.items()}

    @property
    def used_us(self) -> Mapping[str, int]:
        """What each user's jobs have had in all, as far as it is booked."""
        return self._of_user

    def job_us(self, job: str) -> int:
        """What a job has had in all, as far as it is booked."""
        return sum(line.borrowed_us for _, line in self._of_job.get(job, ()))

    def open(self, holder: str, idle_line: AccountKey, devices: Iterable[str], at_s: float) -> None:
        """A lease begins; its devices are idle."""
        at_us = whole_us(at_s)
        self._spans[holder] = {device: _Span(idle_line, Use.IDLE, at_us) for device in devices}
        self._opened[holder] = (idle_line.node, len(self._spans[holder]), at_us)

    def close(self, holder: str, at_s: float) -> None:
        """The lease ends."""
        self.settle(holder, at_s)
        del self._spans[holder]
        node, devices, since_us = self._opened.pop(holder)
        self._ended_us[node] = self._ended_us.get(node, 0) + devices * max(0, whole_us(at_s) - since_us)

    def use(self, holder: str, device: str, line: AccountKey, use: Use, at_s: float) -> None:
        """From now on the device does `use` for `line`."""
        span = self._spans[holder][device]
        if span.use is not use or span.line != line:
            self._book(span, whole_us(at_s))
            span.line, span.use, span.written = line, use, None

    def settle(self, holder: str, at_s: float) -> None:
        """Book all devices of a lease up to now."""
        at_us = whole_us(at_s)
        for span in self._spans[holder].values():
            self._book(span, at_us)

    def shift(self, job: str, shares: Mapping[str, int], source: str, target: str, seconds: float) -> int:
        """Move booked time of a job between two uses, `seconds` for each share (node -> devices).

        What a node's line does not hold is taken from the job's other lines, never more than there is. Returns
        the microseconds that were moved.
        """
        moved = rest = 0
        for node in sorted(shares):
            wanted = whole_us(seconds) * shares[node]
            taken = self._move(self._of_job_on.get((job, node), ()), source, target, wanted)
            moved, rest = moved + taken, rest + wanted - taken
        return moved + self._move(self._of_job.get(job, ()), source, target, rest)

    def add_energy(self, holder: str, energy_j: float) -> None:
        """Spread what a lease's devices drew over what they do now."""
        spans = self._spans.get(holder, {})
        for span in spans.values():
            self._written(span).energy_mj += round(energy_j * 1000 / len(spans))

    def take_changed(self) -> tuple[Account, ...]:
        """Lines that changed since the last call, sorted."""
        changed = tuple(self._lines[key].account() for key in sorted(self._changed, key=_order))
        self._changed.clear()
        return changed

    def untake(self, accounts: Iterable[Account]) -> None:
        """These were taken but could not be saved: hand them out again."""
        self._changed.update(account.key for account in accounts)

    def check(self) -> None:
        """Raises AssertionError unless every line and every node balances."""
        booked: dict[str, int] = {}
        for account in self.accounts.values():
            parts = (account.useful_us, account.rescale_us, account.idle_us, account.lost_us)
            assert account.borrowed_us == sum(parts), f"a line of the books does not balance: {account}"
            assert min(parts) >= 0, f"a line of the books is negative: {account}"
            booked[account.key.node] = booked.get(account.key.node, 0) + account.borrowed_us
        for node in booked.keys() | self._ended_us.keys():
            assert booked.get(node, 0) == self._borrowed_us(node), (
                f"node {node}: {booked.get(node, 0)} us are booked, {self._borrowed_us(node)} us were borrowed"
            )

    def _borrowed_us(self, node: str) -> int:
        """From leases alone: ended ones whole, live ones as far as each device is booked."""
        live = 0
        for holder, (of_node, devices, since_us) in self._opened.items():
            if of_node == node:
                live += sum(span.since_us for span in self._spans[holder].values()) - devices * since_us
        return self._ended_us.get(node, 0) + live

    def _book(self, span: _Span, at_us: int) -> None:
        passed_us = at_us - span.since_us
        if passed_us <= 0:
            return
        line = self._written(span)
        line.borrowed_us += passed_us
        line.of_use[span.use] += passed_us
        self._count(span.line.user, passed_us)
        span.since_us = at_us

    def _count(self, user: str, borrowed_us: int) -> None:
        if user:
            self._of_user[user] = self._of_user.get(user, 0) + borrowed_us

    def _move(self, lines: Iterable[tuple[AccountKey, _Line]], source: str, target: str, wanted_us: int) -> int:
        """Take from the first lines that have something. Returns what was moved."""
        left_us = wanted_us
        for key, line in lines:
            if left_us <= 0:
                break
            taken = min(left_us, line.of_use[source])
            if taken:
                line.of_use[source] -= taken
                line.of_use[target] += taken
                self._changed.add(key)
            left_us -= taken
        return wanted_us - left_us

    def _written(self, span: _Span) -> _Line:
        """The span's line, which is about to change."""
        if span.written is None:
            span.written = self._lines.get(span.line) or self._add(_Line(span.line))
        self._changed.add(span.line)
        return span.written

    def _add(self, line: _Line) -> _Line:
        self._lines[line.key] = line
        insort(self._of_job.setdefault(line.key.job, []), (line.key, line), key=_first_order)
        insort(self._of_job_on.setdefault((line.key.job, line.key.node), []), (line.key, line), key=_first_order)
        return line


def _order(key: AccountKey) -> tuple[str, str, str, str]:
    return key.site, key.node, key.job, key.user


def _first_order(entry: tuple[AccountKey, _Line]) -> tuple[str, str, str, str]:
    return _order(entry[0])
