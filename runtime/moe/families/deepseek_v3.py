"""DeepSeek-V3 (arXiv 2412.19437): as V2, with sigmoid scores whose balancing bias acts on the choice only."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import routed_fields
from runtime.moe.families.deepseek_v2 import latent_fields
from runtime.moe.layout import ConfigJson, Family


def _config(raw: ConfigJson) -> dict[str, Any]:
    raw.need("topk_method", "noaux_tc")
    raw.need("scoring_func", "sigmoid")
    return {
        **latent_fields(raw),
        **routed_fields(raw, "moe_intermediate_size", renormalise=raw.flag("norm_topk_prob", True)),
        "router": "sigmoid_bias",
        "routed_scale": raw.number("routed_scaling_factor", default=2.5),
        "rotary_interleaved": raw.flag("rope_interleave", True),
        "expert_groups": raw.whole("n_group", default=1),
        "groups_per_token": raw.whole("topk_group", default=1),
    }


FAMILY = Family(kind="deepseek_v3", architecture="DeepseekV3ForCausalLM", config=_config, speculates=True)
