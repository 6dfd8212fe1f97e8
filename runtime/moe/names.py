"""Tensor names of the Hugging Face folders that Fallow writes, and how their tensors differ from ours.

Mixtral's, for models that have nothing which Mixtral has not, so that `transformers` can load them; else ours, which
are Yuan 2.0's, but that its query and key projections are interleaved.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from protocol.models import ModelConfig
from runtime.moe.experts import ExpertId, ExpertWeights

_SIZES = {"vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_size", "experts", "experts_per_token"}
_SIZES |= {"expert_size", "rotary_base", "norm_eps", "tie_embeddings", "dense_size"}
_MIXTRAL = ((".mlp.gate.", ".block_sparse_moe.gate."),)


def is_mixtral(config: ModelConfig) -> bool:
    """Whether the folder is written in Mixtral's layout."""
    plain = ModelConfig(router="top_k", localised_filtering=False, rotary_fraction=1.0)
    choices = set(ModelConfig.model_fields) - _SIZES
    return all(getattr(config, name) == getattr(plain, name) for name in choices)


def kind(config: ModelConfig) -> str:
    """The family (`runtime.moe.families`) that the folder is written as."""
    if is_mixtral(config):
        return "mixtral"
    return "yuan" if config.localised_filtering and config.router == "attention" else "fallow"


def interleaves_queries(config: ModelConfig) -> bool:
    """Whether `q_proj` and `k_proj` each hold parts of both, as Yuan's code expects."""
    return config.localised_filtering and config.key_value_heads == config.heads


def dense_name(config: ModelConfig, name: str) -> str:
    """The checkpoint's name of one of our dense parameters."""
    if is_mixtral(config):
        for ours, theirs in _MIXTRAL:
            name = name.replace(ours, theirs)
    return name


def expert_names(config: ModelConfig, key: ExpertId) -> list[str]:
    """The checkpoint's names of an expert's tensors."""
    layer, expert = key[0] + config.dense_layers, key[1]
    if is_mixtral(config):
        return [f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{w}.weight" for w in ("w1", "w3", "w2")]
    return [f"model.layers.{layer}.mlp.experts.{expert}.{w}.weight" for w in ("w1", "w2")]


def split_expert(config: ModelConfig, weights: ExpertWeights) -> list[Tensor]:
    """An expert's tensors in the order of `expert_names`."""
    if is_mixtral(config):
        gate_FD, value_FD = weights.w1.chunk(2)
        return [gate_FD, value_FD, weights.w2]
    return list(weights)


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
