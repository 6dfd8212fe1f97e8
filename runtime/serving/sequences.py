"""What an engine has under way, and which part of it the next step computes.

A sequence owns everything that replaying it needs: its prompt and the tokens emitted so far. Its cache can be thrown
away at any time; it is computed again from them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.serving.params import SamplingParams

CacheFactory = Callable[["Sequence"], tuple[object, int]]
"""A cache for a sequence, and how many of its tokens it holds already."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's tokens. Invariant: `0 <= computed < len(tokens)`; the cache holds exactly `computed` tokens."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    emitted: list[int] = field(default_factory=list)
    computed: int = 0
    cache: object = None
    page_names: list[bytes] = field(default_factory=list)  # see `pages.names`
    kept: int = 0  # pages of it that have been kept

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"sequence {self.id}: the prompt has no tokens")

    @property
    def length(self) -> int:
        """Tokens so far, prompt and emitted."""
        return len(self.prompt) + len(self.emitted)

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens `start` to `end` of prompt and answer taken together."""
        split = len(self.prompt)
        return [*self.prompt[start:end], *self.emitted[max(0, start - split) : max(0, end - split)]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A sequence's tokens `start` to `end`, to be computed in one step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def completes(self) -> bool:
        """Whether the chunk's last token is the sequence's newest, so that its logits choose the next one."""
        return self.end == self.sequence.length


class StepScheduler:
    """Continuous batching: running sequences get their next token first, what is left of the budget fills prompts.

    Invariant: at most `max_batch` sequences run, and together they hold at most `cache_tokens` tokens at full length.
    """

    def __init__(self, max_batch: int, step_tokens: int, cache_tokens: int, new_cache: CacheFactory) -> None:
        self._max_batch = max_batch
        self._step_tokens = max(step_tokens, max_batch)
        self._cache_tokens = cache_tokens
        self._new_cache = new_cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, id: str) -> bool:
        """Forget a sequence, wherever it is. False if it is not here (any more)."""
        for queue in (self.waiting, self.running):
            for sequence in queue:
                if sequence.id == id:
                    queue.remove(sequence)
                    sequence.cache = None
                    return True
        return False

    def can_admit(self, sequence: Sequence) -> bool:
        """Whether another sequence fits: in the batch, and in the cache up to its full length."""
        fits = self._reserve(sequence) <= self.free_tokens
        return len(self.running) < self._max_batch and (fits or not self.running)

    @property
    def free_tokens(self) -> int:
        """Tokens of the cache that no running sequence may need."""
        return self._cache_tokens - sum(self._reserve(other) for other in self.running)

    def admit(self, sequence: Sequence) -> None:
        """Start a waiting sequence."""
        sequence.cache, sequence.computed = self._new_cache(sequence)
        self.running.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; empty when there is nothing to do."""
        while self.waiting and self.can_admit(self.waiting[0]):
            self.admit(self.waiting.popleft())
        budget = self._step_tokens
        chunks: list[Chunk] = []
        for sequence in sorted(self.running, key=lambda s: s.length - s.computed > 1):
            count = min(sequence.length - sequence.computed, budget)
            if count:
                chunks.append(Chunk(sequence, sequence.computed, sequence.computed + count))
                budget -= count
        return chunks

    @staticmethod
    def _reserve(sequence: Sequence) -> int:
        return len(sequence.prompt) + sequence.params.max_tokens
