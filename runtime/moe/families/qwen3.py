"""Qwen3, dense: each head's query and key normed."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import decoder_fields, dense_fields, window_fields
from runtime.moe.layout import ConfigJson, Family


def _config(raw: ConfigJson) -> dict[str, Any]:
    return {
        **decoder_fields(raw),
        **dense_fields(raw),
        **window_fields(raw, is_default=False),
        "attention_bias": "all" if raw.flag("attention_bias") else "none",
        "query_key_norm": "head",
    }


FAMILY = Family(kind="qwen3", architecture="Qwen3ForCausalLM", config=_config)
