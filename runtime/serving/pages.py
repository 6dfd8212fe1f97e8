"""What has been computed once: the caches of whole pages of tokens, kept after their sequence and found by content.

A page is named by a digest of all tokens up to its end, so a name says everything that its keys and values depend on.
A new sequence begins behind the longest row of pages that are here: a shared prompt, the turns before in a chat, what
another engine has handed over.

Sequences under way have their keys and values in one piece each and pages are copies, because gathering scattered
pages for every layer of every step costs a CPU up to ten times the attention itself (docs/BENCHMARKS.md).
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable

from runtime.moe.cache import CachePart, SequenceCache
from runtime.serving.sequences import Sequence

PAGE = 32
"""Tokens of a page."""

Page = tuple[bytes, CachePart]
"""A page with its name."""


class Pages:
    """Pages of one model, the least recently used leave first. May be called from any thread."""

    def __init__(self, new_cache: Callable[[int], SequenceCache], limit_tokens: int, has_filters: bool = False) -> None:
        self._new_cache = new_cache
        self._limit = limit_tokens // PAGE
        self._has_filters = has_filters
        self._pages: OrderedDict[bytes, CachePart] = OrderedDict()
        self._lock = threading.Lock()
        self.on_new: Callable[[Page], None] | None = None  # told of every page that was computed here
        self.hits = 0  # tokens that need not be computed

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def like(self) -> CachePart:
        """A page without tokens: what all others are like."""
        return self._new_cache(1).copy_out(0, 0)

    def open(self, sequence: Sequence) -> tuple[SequenceCache, int]:
        """A cache for a sequence, and how many of its tokens it holds already; at least one is left to compute."""
        cache = self._new_cache(len(sequence.prompt) + sequence.params.max_tokens)
        found = self._find(names(sequence)[: (sequence.length - 1) // PAGE])
        cache.restore(found)
        self.hits += len(found) * PAGE
        return cache, len(found) * PAGE

    def keep(self, sequence: Sequence) -> None:
        """Keep those of a sequence's whole pages that are not here yet. Its cache holds its computed tokens."""
        whole = sequence.computed // PAGE
        if whole <= sequence.kept:
            return
        for number, name in enumerate(names(sequence)[sequence.kept : whole], start=sequence.kept):
            if name not in self._pages:
                part = sequence.cache.copy_out(number * PAGE, (number + 1) * PAGE)  # type: ignore[attr-defined]
                self.add([(name, part)])
                if self.on_new is not None:
                    self.on_new((name, part))
        sequence.kept = whole

    def add(self, pages: Iterable[Page]) -> None:
        """Take pages in."""
        with self._lock:
            self._pages.update(pages)
            self._shrink(self._limit)

    def held(self, sequence: Sequence) -> list[Page]:
        """A sequence's pages that are here."""
        with self._lock:
            return [(name, self._pages[name]) for name in names(sequence) if name in self._pages]

    def trim(self, tokens: int) -> None:
        """Keep no more than so many tokens, now and until the next word."""
        self._limit = max(0, tokens // PAGE)
        if len(self._pages) > self._limit:
            with self._lock:
                self._shrink(self._limit)

    def _find(self, wanted: list[bytes]) -> list[CachePart]:
        with self._lock:
            count = next((n for n, name in enumerate(wanted) if name not in self._pages), len(wanted))
            while count and self._has_filters and not len(self._pages[wanted[count - 1]].filter_inputs):
                count -= 1
            for name in reversed(wanted[:count]):  # a row's later pages leave before its earlier ones
                self._pages.move_to_end(name)
            return [self._pages[name] for name in wanted[:count]]

    def _shrink(self, limit: int) -> None:
        while len(self._pages) > limit:
            self._pages.popitem(last=False)


def names(sequence: Sequence) -> list[bytes]:
    """Names of all whole pages of a sequence's tokens; those known before are not computed again."""
    known = sequence.page_names
    while (len(known) + 1) * PAGE <= sequence.length:
        start = len(known) * PAGE
        tokens = array("q", sequence.tokens(start, start + PAGE)).tobytes()
        known.append(hashlib.blake2b((known[-1] if known else b"") + tokens, digest_size=16).digest())
    return known
