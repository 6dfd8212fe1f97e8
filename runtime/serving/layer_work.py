# ruff: noqa: N815 - tensors carry their dimensions in fields too
"""One layer's expert calls as an engine puts them together: whose rows go where, and what is still missing. No sockets.

T tokens, K experts per token, P = T K (token, expert) pairs, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from runtime.serving.expert_calls import BITS, ExpertCall, bits, taken, tensor_of
from runtime.serving.link import Link


@dataclass(slots=True)
class PendingCall:
    """One call under way: which experts it asks for, and until when it may be the only one."""

    link: Link
    experts: list[int]
    rows: int
    sent_s: float
    hedge_s: float
    place: memoryview | None = None  # where its answer belongs, if that is one piece
    hedged: bool = False


@dataclass(slots=True)
class LayerWork:
    """One layer's work: its (token, expert) pairs, sorted so that those of a shard lie together and its answer can be
    received where it belongs. Invariant: an expert is in `missing` until the rows of `y_PD` that are its pairs' are
    filled."""

    layer: int
    x_TD: torch.Tensor
    order_P: np.ndarray | None  # pair (t, k) as t * K + k, by sorted place; None: as they come
    token_P: np.ndarray | None
    active: int  # K
    spans: dict[int, tuple[int, int]]  # expert -> its pairs
    missing: set[int]
    calls: dict[int, PendingCall] = field(default_factory=dict)
    changes: int = -1  # of the plane, which this work has followed
    y_PD: np.ndarray = field(init=False)  # its bits, of these two both from `make_room` on
    answer: torch.Tensor = field(init=False)  # y_TKD, of the same memory if in that order

    @staticmethod
    def of(layer: int, x_TD: torch.Tensor, expert_TK: np.ndarray, rows: dict[int, int], order: list[int]) -> LayerWork:
        """Nothing of it asked yet. `rows`: how many pairs each expert has; `order`: the experts as they are to lie."""
        active = expert_TK.shape[1]
        order_P = None
        if len(order) > 1:
            place_E = np.empty(max(order) + 1, np.int16)
            place_E[order] = np.arange(len(order))
            order_P = place_E[expert_TK.ravel()].argsort(kind="stable")
        spans, end = {}, 0
        for expert in order:
            begin, end = end, end + rows[expert]
            spans[expert] = (begin, end)
        token_P = order_P if order_P is None or active == 1 else order_P // active
        return LayerWork(layer, x_TD, order_P, token_P, active, spans, set(order))

    def make_room(self) -> None:
        """For the answers; once the calls are sent, so that shards compute meanwhile, and before anything is waited
        for, since torch is slow right after a wait."""
        tokens, width = self.x_TD.shape
        y_TKD = np.empty((tokens, self.active, width), BITS[self.x_TD.dtype])
        self.y_PD = (y_TKD if self.order_P is None else np.empty_like(y_TKD)).reshape(tokens * self.active, width)
        self.answer = tensor_of(y_TKD, self.x_TD.dtype)

    def rows(self, experts: Iterable[int]) -> dict[int, int]:
        """How many pairs each expert has."""
        return {e: self.spans[e][1] - self.spans[e][0] for e in experts}

    def ask(self, experts: list[int]) -> ExpertCall:
        """The call for some of the experts; only the tokens that they need travel, each once."""
        counts = [self.spans[e][1] - self.spans[e][0] for e in experts]
        token_P = self._tokens(experts)
        if token_P is None:
            return ExpertCall(self.layer, self.x_TD, experts, counts)
        if len(experts) == 1:  # which has no token twice
            return ExpertCall(self.layer, taken(self.x_TD, token_P), experts, counts)
        is_needed_T = np.zeros(len(self.x_TD), bool)
        is_needed_T[token_P] = True
        tokens = is_needed_T.nonzero()[0]
        if len(tokens) == len(token_P):
            return ExpertCall(self.layer, taken(self.x_TD, token_P), experts, counts)
        if len(tokens) == len(self.x_TD):
            return ExpertCall(self.layer, self.x_TD, experts, counts, token_P.astype(np.uint32))
        place_T = is_needed_T.cumsum(dtype=np.uint32) - np.uint32(1)
        return ExpertCall(self.layer, taken(self.x_TD, tokens), experts, counts, place_T[token_P])

    def place(self, experts: list[int]) -> memoryview:
        """Where the answer for experts that lie together goes."""
        return memoryview(self.y_PD[self.spans[experts[0]][0] : self.spans[experts[-1]][1]]).cast("B")

    def unasked(self) -> list[int]:
        """Experts that no call under way asks for."""
        return sorted(self.missing.difference(*(call.experts for call in self.calls.values())))

    def fill(self, experts: list[int], y_PD: torch.Tensor) -> None:
        """Take an answer; parts that another copy has given already are left as they are."""
        begin, given_PD = 0, bits(y_PD)
        for expert in experts:
            low, high = self.spans[expert]
            end = begin + high - low
            if expert in self.missing:
                self.y_PD[low:high] = given_PD[begin:end]
            begin = end
        self.missing.difference_update(experts)

    def finish(self) -> torch.Tensor:
        """`y_TKD`, once nothing is missing."""
        if self.order_P is not None:
            bits(self.answer).reshape(self.y_PD.shape)[self.order_P] = self.y_PD
        return self.answer

    def _tokens(self, experts: list[int]) -> np.ndarray | None:
        """Of the pairs of some experts; None for all tokens in order."""
        if self.token_P is None:
            return None
        parts = [self.token_P[slice(*self.spans[e])] for e in experts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
