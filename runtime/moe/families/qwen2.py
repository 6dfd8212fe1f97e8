"""Qwen2 and Qwen2.5, dense: biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import decoder_fields, dense_fields, window_fields
from runtime.moe.layout import ConfigJson, Family


def _config(raw: ConfigJson) -> dict[str, Any]:
    return {
        **decoder_fields(raw),
        **dense_fields(raw),
        **window_fields(raw, is_default=False),
        "attention_bias": "qkv",
    }


FAMILY = Family(kind="qwen2", architecture="Qwen2ForCausalLM", config=_config)
