"""Who is at which item, and how often an item failed of its own. Pure: no files, no clock, no Ray."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping


class Ledger:
    """Items 0 .. total-1, each in exactly one place: waiting, held by one worker, done, or failed for good.

    Workers get the lowest waiting item. An item that comes back because its worker left is not counted as a try.
    """

    def __init__(
        self, total: int, retries: int, done: Iterable[int], failed: Iterable[int], tries: Mapping[int, int]
    ) -> None:
        """`tries`: how often items have failed of their own so far."""
        self.total = total
        self._retries = retries
        self._done = set(done)
        self._failed = set(failed)
        self._tries = Counter(dict(tries))
        self._held: dict[str, int] = {}
        self._waiting = [item for item in range(total) if item not in self._done and item not in self._failed]

    def take(self, worker: str) -> int | None:
        """Give the worker an item; None if none waits. A worker holds one item at a time."""
        assert worker not in self._held, f"{worker} still holds item {self._held[worker]}"
        if not self._waiting:
            return None
        self._held[worker] = heapq.heappop(self._waiting)
        return self._held[worker]

    def adopt(self, worker: str, item: int, attempt: int) -> bool:
        """The worker says that it is at an item already; whether it may go on with it."""
        if item not in self._waiting or self._tries[item] != attempt or worker in self._held:
            return False
        self._waiting.remove(item)
        heapq.heapify(self._waiting)
        self._held[worker] = item
        return True

    def attempt(self, item: int) -> int:
        """Number of the item's present try, from 0: how often it failed of its own."""
        return self._tries[item]

    def held(self, worker: str) -> int | None:
        """The item that the worker holds."""
        return self._held.get(worker)

    def give_back(self, worker: str) -> int | None:
        """The worker is gone: what it held waits again, at no cost. Which item that was."""
        item = self._held.pop(worker, None)
        if item is not None:
            heapq.heappush(self._waiting, item)
        return item

    def succeed(self, worker: str) -> None:
        """The worker's item is done."""
        self._done.add(self._held.pop(worker))

    def fail(self, worker: str) -> bool:
        """The worker's item failed of its own; whether it will be tried again."""
        item = self._held.pop(worker)
        self._tries[item] += 1
        if self._tries[item] > self._retries:
            self._failed.add(item)
            return False
        heapq.heappush(self._waiting, item)
        return True

    @property
    def finished(self) -> int:
        """Items done or failed for good."""
        return len(self._done) + len(self._failed)

    @property
    def failed(self) -> int:
        """Items failed for good."""
        return len(self._failed)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.finished == self.total

    @property
    def has_waiting(self) -> bool:
        """Whether `take` would give an item."""
        return bool(self._waiting)
