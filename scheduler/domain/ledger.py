"""The books: what became of every borrowed device-second (law 8). Whole microseconds, so that sums are exact.

At each instant a leased device is idle (no worker on it), rescaling (its worker does not run yet, or its job does
not) or useful. Later reports move time that had been called useful to where it belongs: a stall to rescale, work that
must be done again to lost. What was borrowed is counted on its own, from leases' openings and ends alone, so that the
two sides can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


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
class _Span:
    """A device's present use, booked up to `since_us`."""

    line: AccountKey
    use: Use
    since_us: int


def whole_us(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * 1e6)


class Books:
    """Running accounts. A device is named by (holder, device), the holder being its lease.

    Times must not go backwards for a device; one that does books nothing.
    """

    def __init__(self, accounts: Iterable[Account] = ()) -> None:
        self._accounts = {account.key: account for account in accounts}
        self._spans: dict[str, dict[str, _Span]] = {}
        self._opened: dict[str, tuple[str, int, int]] = {}  # holder -> node, devices, since
        self._ended_us: dict[str, int] = {}  # node -> borrowed by leases that ended
        self._of_job: dict[str, set[AccountKey]] = {}
        self._changed: set[AccountKey] = set()
        for account in self._accounts.values():
            self._of_job.setdefault(account.key.job, set()).add(account.key)
            self._ended_us[account.key.node] = self._ended_us.get(account.key.node, 0) + account.borrowed_us

    @property
    def accounts(self) -> Mapping[AccountKey, Account]:
        """All lines, as far as they are booked."""
        return self._accounts

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
        if (span.line, span.use) != (line, use):
            self._book(span, whole_us(at_s))
            span.line, span.use = line, use

    def settle(self, holder: str, at_s: float) -> None:
        """Book all devices of a lease up to now."""
        for span in self._spans[holder].values():
            self._book(span, whole_us(at_s))

    def shift(self, job: str, shares: Mapping[str, int], source: str, target: str, seconds: float) -> int:
        """Move booked time of a job between two uses, `seconds` for each share (node -> devices).

        What a node's line does not hold is taken from the job's other lines, never more than there is. Returns
        the microseconds that were moved.
        """
        wanted = {node: whole_us(seconds) * count for node, count in shares.items()}
        lines = sorted(self._of_job.get(job, ()))
        moved = sum(self._move(key, source, target, wanted.pop(key.node, 0), wanted) for key in lines)
        rest = sum(wanted.values())
        for key in lines:
            taken = self._move(key, source, target, rest, {})
            moved, rest = moved + taken, rest - taken
        return moved

    def add_energy(self, holder: str, energy_j: float) -> None:
        """Spread what a lease's devices drew over what they do now."""
        spans = self._spans.get(holder, {})
        for span in spans.values():
            share = round(energy_j * 1000 / len(spans))
            self._change(span.line, energy_mj=self._account(span.line).energy_mj + share)

    def take_changed(self) -> tuple[Account, ...]:
        """Lines that changed since the last call, sorted."""
        changed = tuple(self._accounts[key] for key in sorted(self._changed))
        self._changed.clear()
        return changed

    def untake(self, accounts: Iterable[Account]) -> None:
        """These were taken but could not be saved: hand them out again."""
        self._changed.update(account.key for account in accounts)

    def check(self) -> None:
        """Raises AssertionError unless every line and every node balances."""
        booked: dict[str, int] = {}
        for account in self._accounts.values():
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
        account, field = self._account(span.line), f"{span.use}_us"
        self._change(
            span.line,
            borrowed_us=account.borrowed_us + passed_us,
            **{field: getattr(account, field) + passed_us},
        )
        span.since_us = at_us

    def _move(self, key: AccountKey, source: str, target: str, wanted_us: int, missing: dict[str, int]) -> int:
        account = self._account(key)
        here, there = f"{source}_us", f"{target}_us"
        taken = min(wanted_us, getattr(account, here))
        if taken:
            self._change(key, **{here: getattr(account, here) - taken, there: getattr(account, there) + taken})
        if wanted_us > taken:
            missing[key.node] = wanted_us - taken
        return int(taken)

    def _account(self, key: AccountKey) -> Account:
        return self._accounts.get(key) or Account(key)

    def _change(self, key: AccountKey, **fields: Any) -> None:
        self._accounts[key] = replace(self._account(key), **fields)
        self._of_job.setdefault(key.job, set()).add(key)
        self._changed.add(key)
