"""Requests of a recorded day, replayed in real time against an engine in this process.

The trace is Azure's of an LLM that writes code (arrival, prompt tokens, generated tokens). A small machine cannot carry
it as it is: prompts are a sixteenth as long, answers end after 96 tokens, and of the requests only an evenly spread
part is kept, as much as keeps the engine busy half of the time. When they come is left as recorded, or all of it is
faster by a factor, of which that part is the less.
"""

from __future__ import annotations

import csv
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

PROMPT_DIVISOR, LONGEST_PROMPT, LONGEST_ANSWER = 16, 512, 96
BUSY = 0.5
"""Share of what the engine can do that is asked of it."""


@dataclass(frozen=True, slots=True)
class Work:
    """One request: its prompt, how many tokens its answer has, and when it comes."""

    prompt: tuple[int, ...]
    answer: int
    at_s: float = 0.0

    @property
    def tokens(self) -> int:
        """Of prompt and answer."""
        return len(self.prompt) + self.answer


@dataclass(frozen=True, slots=True)
class Served:
    """One request's fate: seconds from its arrival to the first token and to the last."""

    first_s: float
    last_s: float


def recorded(path: Path, minutes: float, vocab_size: int, faster: float = 1.0) -> list[Work]:
    """The trace's first minutes, so many times as fast, at the lengths that a small machine carries; prompts are random
    tokens."""
    chance, works, first = random.Random(0), list[Work](), datetime.max
    with path.open(encoding="ascii", newline="") as file:
        for line in csv.DictReader(file):
            at = datetime.fromisoformat(line["TIMESTAMP"].ljust(27, "0")[:26])
            first = min(first, at)
            if (at_s := (at - first).total_seconds()) > 60 * minutes:
                break
            length = min(LONGEST_PROMPT, max(1, int(line["ContextTokens"]) // PROMPT_DIVISOR))
            prompt = tuple(chance.randrange(300, min(vocab_size, 8000)) for _ in range(length))
            works.append(Work(prompt, min(LONGEST_ANSWER, max(1, int(line["GeneratedTokens"]))), at_s / faster))
    return works


def thinned(works: Sequence[Work], tokens_per_s: float) -> list[Work]:
    """An evenly spread part that asks for `BUSY` of so many tokens a second; all if that is less."""
    asked = sum(work.tokens for work in works) / max(works[-1].at_s, 1.0)
    part = min(1.0, BUSY * tokens_per_s / asked)
    return [work for n, work in enumerate(works) if math.floor(n * part) > math.floor((n - 1) * part)]


def replay_in_batches(works: Sequence[Work], answer: Callable[[Sequence[Work]], object], largest: int) -> list[Served]:
    """Whoever has come is answered as one batch; nobody joins one that runs, and all end with the longest."""
    start_s, served, waiting = time.monotonic(), list[Served](), list(works)
    while waiting:
        time.sleep(max(0.0, waiting[0].at_s - (time.monotonic() - start_s)))
        now_s = time.monotonic() - start_s
        batch = [work for work in waiting[:largest] if work.at_s <= now_s]
        del waiting[: len(batch)]
        answer(batch)
        end_s = time.monotonic() - start_s
        served += [Served(end_s - work.at_s, end_s - work.at_s) for work in batch]
    return served


def replay(
    works: Sequence[Work], add: Callable[[str, Work], None], step: Callable[[], Sequence[tuple[str, bool]]]
) -> list[Served]:
    """Requests are added as they come; `step` says which got a token, and whether it was the last."""
    start_s, waiting, under_way = time.monotonic(), list(enumerate(works)), dict[str, tuple[Work, float | None]]()
    served: list[Served] = []
    while waiting or under_way:
        now_s = time.monotonic() - start_s
        while waiting and waiting[0][1].at_s <= now_s:
            number, work = waiting.pop(0)
            under_way[str(number)] = work, None
            add(str(number), work)
        if not under_way:
            time.sleep(waiting[0][1].at_s - now_s)
            continue
        for name, is_last in step():
            work, first_s = under_way[name]
            told_s = time.monotonic() - start_s - work.at_s
            under_way[name] = work, first_s if first_s is not None else told_s
            if is_last:
                served.append(Served(under_way.pop(name)[1] or 0.0, told_s))
    return served


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so many are not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def median_last_s(served: Sequence[Served]) -> float:
    """From arrival to the whole answer."""
    return statistics.median(each.last_s for each in served)
