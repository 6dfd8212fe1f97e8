"""Qwen1.5-MoE and Qwen2-MoE: a gated shared block, biases on queries, keys and values."""

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
        "attention_bias": "qkv" if raw.flag("qkv_bias", True) else "none",
        "shared_size": raw.whole("shared_expert_intermediate_size"),
        "shared_gate": True,
    }


FAMILY = Family(
    kind="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    config=_config,
    renames=((".mlp.shared_experts.", ".mlp.shared_expert."),),
)
