"""Mixtral (arXiv 2401.04088): experts under `block_sparse_moe`."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import decoder_fields, routed_fields, window_fields
from runtime.moe.layout import ConfigJson, Family, FusedExperts, SeparateExperts


def _config(raw: ConfigJson) -> dict[str, Any]:
    return {
        **decoder_fields(raw, rotary_base=1_000_000.0),
        **routed_fields(raw, "intermediate_size", renormalise=True),
        **window_fields(raw, is_default=True),
    }


FAMILY = Family(
    kind="mixtral",
    architecture="MixtralForCausalLM",
    config=_config,
    renames=((".mlp.gate.", ".block_sparse_moe.gate."),),
    experts=(
        SeparateExperts("model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight", ("w1", "w3", "w2")),
        FusedExperts(),
    ),
)
