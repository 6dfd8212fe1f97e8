"""Mistral, dense: every layer may slide."""

from __future__ import annotations

from typing import Any

from runtime.moe.config_fields import decoder_fields, dense_fields, window_fields
from runtime.moe.layout import ConfigJson, Family


def _config(raw: ConfigJson) -> dict[str, Any]:
    return {
        **decoder_fields(raw),
        **dense_fields(raw),
        **window_fields(raw, is_default=True),
    }


FAMILY = Family(kind="mistral", architecture="MistralForCausalLM", config=_config)
