"""Work that may wait leaves the processor to calls, and is done nevertheless."""

from __future__ import annotations

import pytest

from runtime.serving.background import REST, Background


class Shard:
    """Counts the calls that come during its work, and the rests that it is given."""

    def __init__(self, calls_during: list[int], calls_in_rests: int = 0) -> None:
        self._calls_during, self._calls_in_rests = calls_during, calls_in_rests
        self._calls = 0
        self.done: list[int] = []
        self.rests_s: list[tuple[int, float]] = []  # after which piece, and how long
        self._background = Background(lambda: self._calls, self._rest)

    def work(self) -> None:
        self._background.each(self._piece, range(len(self._calls_during)))

    def _piece(self, item: int) -> None:
        self._calls += self._calls_during[item]
        self.done.append(item)

    def _rest(self, seconds: float) -> None:
        self._calls += self._calls_in_rests
        self.rests_s.append((self.done[-1], seconds))


def test_it_rests_after_each_piece_during_which_calls_came() -> None:
    shard = Shard([0, 3, 0, 1])
    shard.work()
    assert shard.done == [0, 1, 2, 3]
    assert [piece for piece, _ in shard.rests_s] == [1, 3]


def test_calls_that_come_while_it_rests_count_for_the_next_piece() -> None:
    shard = Shard([1, 0, 0, 0], calls_in_rests=1)
    shard.work()
    assert [piece for piece, _ in shard.rests_s] == [0, 1, 2, 3]


def test_a_rest_is_as_much_longer_as_it_should_be_than_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("runtime.serving.background.time.monotonic", lambda: next(clock))
    shard = Shard([1])
    shard.work()
    assert shard.rests_s == [(0, 2.0 * REST)]


def test_what_goes_wrong_is_told() -> None:
    def work(item: int) -> None:
        raise OSError(f"piece {item} is damaged")

    with pytest.raises(OSError, match="piece 0 is damaged"):
        Background(lambda: 0).each(work, range(3))
