"""Continuous batching: bounds hold in every step, everybody gets on, and a replay goes on where it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.serving.params import SamplingParams
from runtime.serving.sequences import Sequence, StepScheduler

lengths = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), min_size=1, max_size=12)


def _sequence(number: int, prompt: int, tokens: int, emitted: int = 0) -> Sequence:
    return Sequence(str(number), tuple(range(prompt)), SamplingParams(tokens), list(range(emitted)))


@given(lengths, st.integers(1, 5), st.integers(1, 40), st.integers(10, 200))
def test_every_sequence_is_computed_once_and_within_bounds(
    wanted: list[tuple[int, int]], max_batch: int, step_tokens: int, cache_tokens: int
) -> None:
    scheduler = StepScheduler(max_batch, step_tokens, cache_tokens, lambda sequence: (object(), 0))
    for number, (prompt, tokens) in enumerate(wanted):
        scheduler.add(_sequence(number, prompt, tokens))
    seen: dict[str, list[int]] = {}
    for _ in range(3000):
        chunks = scheduler.schedule()
        if not chunks:
            break
        assert len(scheduler.running) <= max_batch
        assert sum(chunk.end - chunk.start for chunk in chunks) <= max(step_tokens, max_batch)
        held = sum(len(s.prompt) + s.params.max_tokens for s in scheduler.running)
        assert held <= cache_tokens or len(scheduler.running) == 1
        for chunk in chunks:
            sequence, complete = chunk.sequence, chunk.completes
            assert chunk.start == sequence.computed
            seen.setdefault(sequence.id, []).extend(sequence.tokens(chunk.start, chunk.end))
            sequence.computed = chunk.end
            if complete:
                sequence.emitted.append(1000 + len(sequence.emitted))
                if len(sequence.emitted) == sequence.params.max_tokens:
                    assert scheduler.remove(sequence.id)
    assert not scheduler.waiting
    assert not scheduler.running
    for number, (prompt, tokens) in enumerate(wanted):
        assert seen[str(number)] == [*range(prompt), *range(1000, 1000 + tokens - 1)]


def test_running_sequences_get_their_token_before_a_long_prompt() -> None:
    scheduler = StepScheduler(4, 8, 10_000, lambda sequence: (object(), 0))
    scheduler.add(_sequence(1, 100, 5))
    scheduler.schedule()[0].sequence.computed = 8
    scheduler.add(_sequence(2, 3, 5, emitted=2))
    fresh = scheduler.schedule()
    assert [(chunk.sequence.id, chunk.end - chunk.start) for chunk in fresh] == [("1", 8)]
    scheduler.running[1].computed = 4  # one token is left to compute: it decodes
    assert [chunk.sequence.id for chunk in scheduler.schedule()] == ["2", "1"]


def test_a_replayed_sequence_computes_prompt_and_emitted_tokens() -> None:
    scheduler = StepScheduler(4, 100, 1000, lambda sequence: (object(), 0))
    scheduler.add(_sequence(1, 3, 9, emitted=4))
    (chunk,) = scheduler.schedule()
    assert chunk.completes
    assert chunk.sequence.tokens(chunk.start, chunk.end) == [0, 1, 2, 0, 1, 2, 3]


def test_a_removed_sequence_makes_room() -> None:
    scheduler = StepScheduler(1, 10, 1000, lambda sequence: (object(), 0))
    scheduler.add(_sequence(1, 3, 9))
    scheduler.add(_sequence(2, 3, 9))
    assert [chunk.sequence.id for chunk in scheduler.schedule()] == ["1"]
    assert scheduler.remove("1")
    assert not scheduler.remove("1")
    assert [chunk.sequence.id for chunk in scheduler.schedule()] == ["2"]
