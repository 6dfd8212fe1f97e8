"""Which family a model is written as, and its config.json in that family's words. Needs no torch.

A family will do if its own reader, given what is written, finds the model again: then `transformers`, which reads the
same fields, computes the same logits. What no family has is written as Fallow's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from protocol.models import ModelConfig
from runtime.moe.families import FAMILIES
from runtime.moe.layout import ConfigJson, DamagedCheckpoint, Family


def _common(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "num_experts_per_tok": config.experts_per_token,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary_base,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
    }


def _mixtral(config: ModelConfig) -> dict[str, Any]:
    sizes = {"intermediate_size": config.expert_size, "num_local_experts": config.experts}
    return {**sizes, "head_dim": config.attention_head_size, "sliding_window": None}


def _routed(config: ModelConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.dense_size or config.expert_size,
        "moe_intermediate_size": config.expert_size,
        "norm_topk_prob": config.renormalise,
    }


def _qwen(config: ModelConfig) -> dict[str, Any]:
    return {
        **_routed(config),
        "num_experts": config.experts,
        "head_dim": config.attention_head_size,
        "shared_expert_intermediate_size": config.shared_size,
        "qkv_bias": config.attention_bias == "qkv",
        "attention_bias": config.attention_bias == "all",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


def _olmoe(config: ModelConfig) -> dict[str, Any]:
    named = {"intermediate_size": config.expert_size, "num_experts": config.experts}
    clip = {"clip_qkv": config.query_key_value_clip, "attention_bias": config.attention_bias == "all"}
    return {**named, **clip, "norm_topk_prob": config.renormalise}


def _deepseek(config: ModelConfig) -> dict[str, Any]:
    latent, is_v3 = config.latent, config.router == "sigmoid_bias"
    if latent is None:
        return {}
    choice = "noaux_tc" if is_v3 else ("group_limited_greedy" if config.expert_groups > 1 else "greedy")
    return {
        **_routed(config),
        "n_routed_experts": config.experts,
        "n_shared_experts": config.shared_size // config.expert_size,
        "first_k_dense_replace": config.dense_layers,
        "moe_layer_freq": 1,
        "routed_scaling_factor": config.routed_scale,
        "n_group": config.expert_groups,
        "topk_group": config.groups_per_token,
        "topk_method": choice,
        "scoring_func": "sigmoid" if is_v3 else "softmax",
        "attention_bias": config.attention_bias == "all",
        "rope_interleave": config.rotary_interleaved,
        "kv_lora_rank": latent.rank,
        "q_lora_rank": latent.query_rank,
        "qk_nope_head_dim": latent.plain_size,
        "qk_rope_head_dim": latent.rotary_size,
        "v_head_dim": latent.value_size,
    }


_WORDS: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "mixtral": _mixtral,
    "qwen3_moe": _qwen,
    "qwen2_moe": _qwen,
    "olmoe": _olmoe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}


@lru_cache(maxsize=64)
def family_for(config: ModelConfig) -> Family:
    """The family that a model is written as: the first whose words describe it."""
    for kind in _WORDS:
        if _describes(FAMILIES[kind], config):
            return FAMILIES[kind]
    return FAMILIES["yuan" if config.localised_filtering and config.router == "attention" else "fallow"]


def config_json(config: ModelConfig) -> dict[str, Any]:
    """config.json: what the family's code reads, and all of ours under `fallow`."""
    family = family_for(config)
    words = _WORDS[family.kind](config) if family.kind in _WORDS else _own(config)
    return {
        "architectures": [family.architecture],
        "model_type": family.kind,
        **_common(config),
        **words,
        "torch_dtype": "float32",
        "fallow": config.model_dump(),
    }


def _own(config: ModelConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.expert_size,
        "head_dim": config.attention_head_size,
        "num_local_experts": config.experts,
        "partial_rotary_factor": config.rotary_fraction,
    }


def _describes(family: Family, config: ModelConfig) -> bool:
    words = {"model_type": family.kind, **_common(config), **_WORDS[family.kind](config)}
    try:
        found = family.read(ConfigJson(Path("config.json"), words))
    except (DamagedCheckpoint, ValidationError):
        return False
    return _plain(found) == _plain(config)


def _plain(config: ModelConfig) -> ModelConfig:
    """With what may be left out filled in, and without what nothing uses."""
    filled = {"head_size": config.attention_head_size, "kv_heads": config.key_value_heads}
    return config.model_copy(update=filled if config.dense_layers else {**filled, "dense_size": 0})
