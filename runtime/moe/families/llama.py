"""Llama 1 to 3 and SmolLM, dense."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import decoder_fields, dense_fields
from runtime.moe.layout import ConfigJson, Family


def _config(raw: ConfigJson) -> dict[str, Any]:
    return {
        **decoder_fields(raw),
        **dense_fields(raw),
        "attention_bias": "all" if raw.flag("attention_bias") else "none",
    }


FAMILY = Family(kind="llama", architecture="LlamaForCausalLM", config=_config)
