"""DeepSeek-V2 (arXiv 2405.04434): latent attention, first layers dense, shared experts, softmax scores in groups."""

from __future__ import annotations

from typing import Any

from protocol.models import LatentAttention
from runtime.moe.config_fields import decoder_fields, routed_fields
from runtime.moe.layout import ConfigJson, Family


def latent_fields(raw: ConfigJson) -> dict[str, Any]:
    """Fields that V2 and V3 share."""
    raw.need("moe_layer_freq", 1)
    return {
        **decoder_fields(raw, scale_scores=True),
        "kv_heads": None,
        "head_size": raw.whole("qk_nope_head_dim") + raw.whole("qk_rope_head_dim"),
        "dense_layers": raw.whole("first_k_dense_replace", default=0),
        "dense_size": raw.whole("intermediate_size"),
        "shared_size": raw.whole("n_shared_experts", default=0) * raw.whole("moe_intermediate_size"),
        "routed_scale": raw.number("routed_scaling_factor", default=1.0),
        "attention_bias": "all" if raw.flag("attention_bias") else "none",
        "rotary_interleaved": True,
        "latent": LatentAttention(
            rank=raw.whole("kv_lora_rank"),
            query_rank=raw.whole("q_lora_rank", default=None),
            plain_size=raw.whole("qk_nope_head_dim"),
            rotary_size=raw.whole("qk_rope_head_dim"),
            value_size=raw.whole("v_head_dim"),
        ),
    }


def _config(raw: ConfigJson) -> dict[str, Any]:
    raw.need("topk_method", "greedy", "group_limited_greedy")
    raw.need("scoring_func", "softmax")
    raw.need("norm_topk_prob", False)
    is_grouped = raw.get("topk_method") == "group_limited_greedy"
    return {
        **latent_fields(raw),
        **routed_fields(raw, "moe_intermediate_size", renormalise=False),
        "expert_groups": raw.whole("n_group", default=1) if is_grouped else 1,
        "groups_per_token": raw.whole("topk_group", default=1) if is_grouped else 1,
    }


FAMILY = Family(kind="deepseek_v2", architecture="DeepseekV2ForCausalLM", config=_config)
