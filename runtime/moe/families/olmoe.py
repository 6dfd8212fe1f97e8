"""OLMoE (arXiv 2409.02060): queries and keys normed over all heads, weights not renormalised."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import decoder_fields, routed_fields
from runtime.moe.layout import ConfigJson, Family


def _config(raw: ConfigJson) -> dict[str, Any]:
    return {
        **decoder_fields(raw),
        **routed_fields(raw, "intermediate_size"),
        "norm_eps": raw.number("rms_norm_eps", default=1e-5),
        "attention_bias": "all" if raw.flag("attention_bias") else "none",
        "query_key_norm": "whole",
        "query_key_value_clip": raw.number("clip_qkv", default=None),
    }


FAMILY = Family(kind="olmoe", architecture="OlmoeForCausalLM", config=_config)
