"""The books: what became of every borrowed device-second (law 8). Whole microseconds, so that sums are exact."""

from __future__ import annotations

from dataclasses import dataclass


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
