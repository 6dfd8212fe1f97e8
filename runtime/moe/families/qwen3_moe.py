"""Qwen3-MoE: each head's query and key normed."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import decoder_fields, refuse_sparse_steps, routed_fields, window_fields
from runtime.moe.layout import ConfigJson, Family


def _config(raw: ConfigJson) -> dict[str, Any]:
    refuse_sparse_steps(raw)
    return {
        **decoder_fields(raw),
        **routed_fields(raw, "moe_intermediate_size"),
        **window_fields(raw, is_default=False),
        "attention_bias": "all" if raw.flag("attention_bias") else "none",
        "query_key_norm": "head",
    }


FAMILY = Family(kind="qwen3_moe", architecture="Qwen3MoeForCausalLM", config=_config)
