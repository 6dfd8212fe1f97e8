"""The ring of samples: bounded, ordered, and the same whether it comes whole or piece by piece."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from scheduler.status_page.history import SPANS_S, History, Sample

steps = st.lists(st.tuples(st.floats(0.2, 40.0), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=120)
SMALL = ((20, 1), (120, 10))


def samples(rows: list[tuple[float, int, int]]) -> list[Sample]:
    at_s, made = 1_800_000_000.0, []
    for gap_s, devices, reclaims in rows:
        at_s += gap_s
        made.append(Sample(at_s, devices, devices // 2, devices // 3, reclaims))
    return made


@given(steps)
def test_memory_is_bounded_and_times_grow(rows: list[tuple[float, int, int]]) -> None:
    history = History(SMALL)
    for sample in samples(rows):
        history.add(sample)
    for span_s, step_s in SMALL:
        kept = history.rows_after(None)[span_s]
        assert len(kept) <= span_s // step_s
        assert all(earlier[0] < later[0] for earlier, later in itertools.pairwise(kept))
        assert all(row[0] % step_s == 0 for row in kept)


@given(steps, st.integers(1, 7))
def test_pieces_make_the_whole(rows: list[tuple[float, int, int]], every: int) -> None:
    history, pieces, mark = History(((10_000, 1), (10_000_000, 10))), {10_000: [], 10_000_000: []}, None
    for i, sample in enumerate(samples(rows)):
        history.add(sample)
        if i % every == 0:
            for span_s, new in history.rows_after(mark).items():
                pieces[span_s] += new
            mark = history.mark
    for span_s, new in history.rows_after(mark).items():
        pieces[span_s] += new
    assert pieces == history.rows_after(None)


@given(steps)
def test_no_reclaim_is_dropped_or_counted_twice(rows: list[tuple[float, int, int]]) -> None:
    history = History(((1_000_000, 10),))
    made = samples(rows)
    for sample in made:
        history.add(sample)
    history.add(Sample(made[-1].at_s + 10, 0, 0, 0))  # finishes the last row
    assert sum(row[4] for row in history.rows_after(None)[1_000_000]) == sum(sample.reclaims for sample in made)


def test_a_row_is_the_mean_of_its_samples() -> None:
    history = History(((60, 10),))
    for at_s, useful in ((100.0, 4), (105.0, 8), (110.0, 0)):
        history.add(Sample(at_s, useful, 0, 2))
    assert history.rows_after(None) == {60: [(100, 6.0, 0.0, 2.0, 0)]}


def test_a_week_at_one_sample_a_second_stays_small() -> None:
    history = History()
    for second in range(0, 700_000, 50):
        history.add(Sample(float(second), 1, 1, 1))
    assert sum(len(rows) for rows in history.rows_after(None).values()) <= sum(s // step for s, step in SPANS_S) <= 2100
