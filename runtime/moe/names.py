"""Tensor names of the Hugging Face folders that Fallow writes, and how their tensors differ from ours.

They are those of the family that the model is written as (`runtime.moe.export`), so that `transformers` can load it;
Yuan 2.0's query and key projections are interleaved.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from protocol.models import ModelConfig
from runtime.moe.experts import ExpertId, ExpertWeights
from runtime.moe.export import family_for
from runtime.moe.layout import Piece


def interleaves_queries(config: ModelConfig) -> bool:
    """Whether `q_proj` and `k_proj` each hold parts of both, as Yuan's code expects."""
    return config.localised_filtering and config.key_value_heads == config.heads


def dense_name(config: ModelConfig, name: str) -> str:
    """The checkpoint's name of one of our dense parameters."""
    return family_for(config).theirs(name)


def expert_names(config: ModelConfig, key: ExpertId) -> list[str]:
    """The checkpoint's names of an expert's tensors."""
    return [piece.name for piece in _pieces(config, key)]


def split_expert(config: ModelConfig, weights: ExpertWeights) -> list[Tensor]:
    """An expert's tensors in the order of `expert_names`."""
    if len(_pieces(config, (0, 0))) == 3:
        gate_FD, value_FD = weights.w1.chunk(2)
        return [gate_FD, value_FD, weights.w2]
    return list(weights)


def _pieces(config: ModelConfig, key: ExpertId) -> list[Piece]:
    pieces: list[Piece] = family_for(config).experts[0].pieces(config, key[0] + config.dense_layers, key[1])
    return pieces


def interleave(config: ModelConfig, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Yuan's `q_proj` and `k_proj`: their concatenation, viewed as (heads, 2 d), holds each head's Q, then its K."""
    heads = (config.heads, config.attention_head_size, -1)
    both = torch.cat((query.reshape(heads), key.reshape(heads)), dim=1).flatten(0, 1)
    first, second = both.chunk(2)
    return first.contiguous(), second.contiguous()


def separate(config: ModelConfig, q_proj: Tensor, k_proj: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `interleave`."""
    both = torch.cat((q_proj, k_proj)).reshape(config.heads, 2, config.attention_head_size, -1)
    return both[:, 0].flatten(0, 1), both[:, 1].flatten(0, 1)


def query_key_pairs(config: ModelConfig) -> Iterable[tuple[str, str]]:
    """Names of every layer's query and key projection."""
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}.self_attn"
        yield f"{prefix}.q_proj.weight", f"{prefix}.k_proj.weight"
