"""From logits to a token. The random number is a function of (seed, position), so a replay draws the same token.

V vocabulary, C tokens that are still candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from runtime.serving.params import Sampled, SamplingParams

CANDIDATES = 256
"""So many likeliest tokens are sorted first; most often they hold all that `top_p` or `min_p` keep."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the request's seed and the token's position in the answer."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def choose(logits_V: torch.Tensor, params: SamplingParams, position: int) -> int:
    """The next token: inverse transform over the kept tokens in their order."""
    if params.temperature == 0:
        return int(logits_V.argmax())
    chance_C, ids_C = kept(logits_V, params)
    mass_C = chance_C.cumsum(0)
    target = uniform(params.seed, position) * float(mass_C[-1])
    at = min(int(torch.searchsorted(mass_C, target, right=True)), len(mass_C) - 1)
    return at if ids_C is None else int(ids_C[at])


def kept(logits_V: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens that may be drawn: their chances, which need not add up to 1, and their ids, falling, ties by id.

    Ids are None where all tokens are kept, in their own order.
    """
    scaled_V = logits_V.double() / params.temperature
    if not params.top_k and params.top_p == 1 and not params.min_p:
        return scaled_V.softmax(0), None
    count = params.top_k or CANDIDATES
    while True:
        scaled_C, ids_C = _largest(scaled_V, count)
        whole = scaled_C if params.top_k else scaled_V
        chance_C = (scaled_C - whole.logsumexp(0)).exp()
        left = _cut(chance_C, params)
        if left < len(chance_C) or params.top_k or len(chance_C) == len(scaled_V):
            return chance_C[:left], ids_C[:left]
        count = len(scaled_V)


def _largest(scores_V: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest, falling, ties by id."""
    ids_C = scores_V.topk(count).indices.sort().values if count < len(scores_V) else torch.arange(len(scores_V))
    scores_C, order_C = scores_V[ids_C].sort(descending=True, stable=True)
    return scores_C, ids_C[order_C]


def _cut(chance_C: torch.Tensor, params: SamplingParams) -> int:
    """How many of the falling chances `top_p` and `min_p` keep; at least one."""
    left = len(chance_C)
    if params.top_p < 1:
        left = min(left, int((chance_C.cumsum(0) < params.top_p).sum()) + 1)
    if params.min_p:
        left = min(left, int((chance_C >= params.min_p * chance_C[0]).sum()))
    return max(1, left)


def rescored(
    logits_V: torch.Tensor, params: SamplingParams, prompt: Sequence[int], emitted: Sequence[int]
) -> torch.Tensor:
    """The scores after bias and penalties."""
    scores_V = logits_V.clone()
    if params.bias:
        ids, shifts = zip(*params.bias, strict=True)
        scores_V[list(ids)] += torch.tensor(shifts)
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *emitted}))
        old = scores_V[seen]
        scores_V[seen] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
    if emitted and (params.presence_penalty or params.frequency_penalty):
        said, times = torch.tensor(emitted).unique(return_counts=True)
        scores_V[said] -= params.presence_penalty + params.frequency_penalty * times
    return scores_V


def sample(
    logits_V: torch.Tensor,
    params: SamplingParams,
    position: int,
    prompt: Sequence[int] = (),
    emitted: Sequence[int] = (),
) -> Sampled:
    """Choose a token and, where asked for, its log-probability under the model, before anything changed its score."""
    scores_V = rescored(logits_V, params, prompt, emitted) if params.rescores else logits_V
    token = choose(scores_V, params, position)
    if params.logprobs is None:
        return Sampled(token)
    logprobs_V = logits_V.float().log_softmax(0)
    values, ids = logprobs_V.topk(min(params.logprobs, logprobs_V.numel()))
    return Sampled(token, float(logprobs_V[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
