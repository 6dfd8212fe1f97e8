"""The recorded day that the serving benchmark replays: read, thinned, and everybody served once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from bench.trace_serving import BUSY, Work, recorded, replay, replay_in_batches, thinned

LINES = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3,800
2023-11-16 18:17:33.9799600,99999,7
2023-11-16 18:19:04.9799600,32,1
"""


def test_a_trace_is_read_at_the_lengths_of_a_small_machine(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(LINES)
    works = recorded(tmp_path / "trace.csv", 1.0, 1000)
    assert [(len(work.prompt), work.answer) for work in works] == [(300, 10), (1, 96), (512, 7)]
    assert [work.at_s for work in works] == pytest.approx([0.0, 0.052, 30.0])
    assert len(recorded(tmp_path / "trace.csv", 2.5, 1000)) == 4
    fast = recorded(tmp_path / "trace.csv", 1.0, 1000, faster=4.0)
    assert [4.0 * work.at_s for work in fast] == [work.at_s for work in works]


def test_an_evenly_spread_part_is_kept() -> None:
    works = [Work((1,) * 10, 10, float(n)) for n in range(101)]
    kept = thinned(works, 20.0)
    assert sum(work.tokens for work in kept) == pytest.approx(BUSY * 20.0 * 101, rel=0.05)
    assert max(b.at_s - a.at_s for a, b in pairwise(kept)) <= 3.0
    assert thinned(works, 1e9) == works
    assert thinned(works, 1e-9) == works[:1]


def test_everybody_is_served_once_and_not_before_he_comes() -> None:
    works = [Work((1,), 1 + n % 3, 0.01 * n) for n in range(10)]
    left: dict[str, int] = {}

    def step() -> list[tuple[str, bool]]:
        for name in left:
            left[name] -= 1
        told = [(name, count == 0) for name, count in left.items()]
        for name, _ in [each for each in told if each[1]]:
            del left[name]
        return told

    served = replay(works, lambda name, work: left.update({name: work.answer}), step)
    batches: list[Sequence[Work]] = []
    served_in_batches = replay_in_batches(works, batches.append, 4)
    assert len(served) == len(served_in_batches) == sum(map(len, batches)) == len(works)
    assert [work for batch in batches for work in batch] == works
    assert max(map(len, batches)) <= 4
    assert all(0.0 <= each.first_s <= each.last_s for each in served + served_in_batches)
