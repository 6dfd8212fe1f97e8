"""From logits to a token. The random number is a function of (seed, position), so a replay draws the same token."""

from __future__ import annotations

import hashlib

import torch

from runtime.serving.params import Sampled, SamplingParams


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the request's seed and the token's position in the answer."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def choose(logits_V: torch.Tensor, params: SamplingParams, position: int) -> int:
    """The next token: inverse transform over the kept tokens in order of falling probability, ties by id."""
    if params.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V.double() / params.temperature
    sorted_V, ids_V = scaled_V.sort(descending=True, stable=True)
    if params.top_k:
        sorted_V, ids_V = sorted_V[: params.top_k], ids_V[: params.top_k]
    mass_V = sorted_V.softmax(0).cumsum(0)
    if params.top_p < 1:
        kept = int((mass_V < params.top_p).sum()) + 1
        mass_V, ids_V = mass_V[:kept], ids_V[:kept]
    target = uniform(params.seed, position) * float(mass_V[-1])
    return int(ids_V[min(int((mass_V <= target).sum()), len(ids_V) - 1)])


def sample(logits_V: torch.Tensor, params: SamplingParams, position: int) -> Sampled:
    """Choose a token and, where asked for, its log-probability under the model (before temperature)."""
    token = choose(logits_V, params, position)
    if params.logprobs is None:
        return Sampled(token)
    logprobs_V = logits_V.float().log_softmax(0)
    values, ids = logprobs_V.topk(min(params.logprobs, logprobs_V.numel()))
    return Sampled(token, float(logprobs_V[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
