"""Small random models of every architecture, made and saved by `transformers`: what ours must agree with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

COMMON = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "attn_implementation": "eager",
}
GROUPED = {"num_key_value_heads": 2}
ROUTED = {**GROUPED, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
LATENT = {
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500.0,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4}),
    "mixtral sliding": ("mixtral", {**GROUPED, "num_local_experts": 4, "sliding_window": 7}),
    "qwen2_moe": ("qwen2_moe", {**ROUTED, "shared_expert_intermediate_size": 40}),
    "qwen2_moe renormalised, no bias": (
        "qwen2_moe",
        {**ROUTED, "shared_expert_intermediate_size": 40, "norm_topk_prob": True, "qkv_bias": False},
    ),
    "qwen3_moe": ("qwen3_moe", {**ROUTED, "head_dim": 12, "norm_topk_prob": True}),
    "qwen3_moe yarn, biases": ("qwen3_moe", {**ROUTED, "attention_bias": True, "rope_parameters": YARN}),
    "olmoe": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3}),
    "olmoe grouped, clipped": (
        "olmoe",
        {**GROUPED, "num_experts": 8, "num_experts_per_tok": 3, "clip_qkv": 0.8, "norm_topk_prob": True},
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **LATENT,
            "q_lora_rank": 20,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.7,
        },
    ),
    "deepseek_v2 lite": ("deepseek_v2", {**LATENT, "q_lora_rank": None, "attention_bias": True}),
    "deepseek_v3": ("deepseek_v3", {**LATENT, "q_lora_rank": 20, "n_group": 4, "topk_group": 2}),
    "deepseek_v3 yarn": (
        "deepseek_v3",
        {
            **LATENT,
            "q_lora_rank": 20,
            "n_group": 2,
            "topk_group": 1,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
        },
    ),
    "deepseek_v3 halves": (
        "deepseek_v3",
        {**LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "rope_interleave": False},
    ),
    "gpt_oss": (
        "gpt_oss",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 7},
    ),
    "llama": ("llama", {**GROUPED, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama biases, linear": (
        "llama",
        {
            **GROUPED,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        },
    ),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 12}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 7}),
}


def saved(name: str, folder: Path, seed: int = 0, **saving: Any) -> Any:
    """The model of a variant, its parameters large enough for every part to matter, also saved into `folder`."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind, changes = VARIANTS[name]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**COMMON, **changes})).eval().float()
    generator = torch.Generator().manual_seed(seed)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for key, tensor in tensors.items():
            if "inv_freq" in key:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            is_norm = key.endswith("norm.weight")
            tensor.copy_(1 + 0.2 * noise if is_norm else noise * (0.3 if tensor.dim() < 2 else _fan_in(key, tensor)))
    model.save_pretrained(folder, **saving)
    return model


def _fan_in(key: str, tensor: torch.Tensor) -> float:
    return 1.0 if "embed_tokens" in key else tensor.shape[-1] ** -0.5
