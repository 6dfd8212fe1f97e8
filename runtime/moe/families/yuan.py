"""Yuan 2.0-M32 (arXiv 2405.17976): attention router, localised filtering, gate and value stacked in `w1`."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import decoder_fields
from runtime.moe.layout import ConfigJson, Family, SeparateExperts


def _config(raw: ConfigJson) -> dict[str, Any]:
    experts = ConfigJson(raw.path, raw.get("moe_config", {}))
    heads = raw.whole("num_attention_heads")
    fields = {
        **decoder_fields(raw),
        "router": "attention",
        "localised_filtering": True,
        "kv_heads": None,
        "head_size": raw.whole("attention_projection_size", default=raw.whole("hidden_size")) // heads,
        "experts": experts.whole("moe_num_experts"),
        "experts_per_token": experts.whole("moe_top_k"),
        "expert_size": experts.whole("ffn_hidden_size", default=raw.whole("intermediate_size")),
    }
    # the model's own code turns the first half of each head without a field that says so
    return {**fields, "rotary_fraction": raw.number("partial_rotary_factor", default=0.5)}


FAMILY = Family(
    kind="yuan",
    architecture="YuanForCausalLM",
    config=_config,
    experts=(SeparateExperts(parts=("w1", "w2")),),
)
