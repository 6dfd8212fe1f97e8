"""The inference engine: schedule, run, postprocess. It knows neither sockets nor text."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from runtime.moe.experts import ExpertExecutor
from runtime.serving.dataplane import ExpertPlane
from runtime.serving.pages import Pages
from runtime.serving.params import Sampled
from runtime.serving.sampling import sample
from runtime.serving.sequences import Chunk, StepScheduler


class Model(Protocol):
    """The dense part of a model, as `runtime.moe.model.MoeModel` offers it."""

    def extend(self, parts: Seq[torch.Tensor], caches: Seq[Any], executor: ExpertExecutor) -> torch.Tensor:
        """Append `parts[n]` to sequence n's cache; logits (N, V) after the last token of each."""


@dataclass(frozen=True, slots=True)
class Emitted:
    """One new token: `position` counts from the answer's first token; `finish` is "", "stop" or "length"."""

    sequence: str
    position: int
    sampled: Sampled
    finish: str


class RemoteExperts:
    """The `ExpertExecutor` whose experts lie on shards. Each token's sum runs in the order of its router's choice,
    so it is the same to the last bit wherever its experts are. Counts how many tokens each expert gets."""

    def __init__(self, plane: ExpertPlane, layers: int, experts: int) -> None:
        self._plane = plane
        self._tokens_LE = torch.zeros(layers, experts, dtype=torch.int64)

    def __call__(
        self, layer: int, x_TD: torch.Tensor, expert_ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """`y_t = sum over k of weights[t, k] * expert[ids[t, k]](x_t)`, (T, D)."""
        ids_TK = expert_ids_TK.cpu()
        self._tokens_LE[layer] += torch.bincount(ids_TK.flatten(), minlength=self._tokens_LE.shape[1])
        y_TKD = self._plane.run(layer, x_TD, ids_TK).to(x_TD.device)
        return (y_TKD * weights_TK.to(y_TKD.dtype).unsqueeze(2)).sum(dim=1)

    def take_tokens(self) -> list[int]:
        """Tokens of each expert, layer by layer, since this was called last; a step that runs may count for neither."""
        tokens_LE, self._tokens_LE = self._tokens_LE, torch.zeros_like(self._tokens_LE)
        return tokens_LE.flatten().tolist()


class Engine:
    """Continues sequences token by token. Not thread-safe: one thread adds, cancels and steps."""

    def __init__(self, model: Model, experts: ExpertExecutor, scheduler: StepScheduler, pages: Pages) -> None:
        self._model = model
        self._experts = experts
        self.scheduler = scheduler
        self.pages = pages

    def step(self) -> list[Emitted]:
        """Compute one step; the tokens that it gave."""
        chunks = self.scheduler.schedule()
        self.pages.trim(self.scheduler.free_tokens)
        return self._postprocess(chunks, self._run(chunks)) if chunks else []

    def _run(self, chunks: list[Chunk]) -> torch.Tensor:
        parts = [torch.tensor(c.sequence.tokens(c.start, c.end)) for c in chunks]
        logits_NV = self._model.extend(parts, [c.sequence.cache for c in chunks], self._experts)
        return logits_NV.float().cpu()

    def _postprocess(self, chunks: list[Chunk], logits_NV: torch.Tensor) -> list[Emitted]:
        emitted = []
        for chunk, logits_V in zip(chunks, logits_NV, strict=True):
            complete = chunk.completes
            chunk.sequence.computed = chunk.end
            self.pages.keep(chunk.sequence)
            if complete:
                emitted.append(self._emit(chunk, logits_V))
        return emitted

    def _emit(self, chunk: Chunk, logits_V: torch.Tensor) -> Emitted:
        sequence, params = chunk.sequence, chunk.sequence.params
        position = len(sequence.emitted)
        sampled = sample(logits_V, params, position, sequence.prompt, sequence.emitted)
        sequence.emitted.append(sampled.token)
        finish = "stop" if sampled.token in params.stop_ids else ""
        if not finish and len(sequence.emitted) >= params.max_tokens:
            finish = "length"
        if finish:
            self.scheduler.remove(sequence.id)
        return Emitted(sequence.id, position, sampled, finish)
