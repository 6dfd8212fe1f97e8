"""GPT-OSS: attention sinks, every other layer slides, clamped experts with biases, published in MXFP4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocol.models import ModelConfig
from runtime.moe.config_fields import decoder_fields, routed_fields, window_fields
from runtime.moe.layout import ConfigJson, Family, Piece

_NAME = "model.layers.{layer}.mlp.experts.{part}"


@dataclass(frozen=True)
class TransposedExperts:
    """All experts of a layer in one tensor, inputs first, gate and value taking turns, biases beside them."""

    arrangement = "columns"

    def pieces(self, config: ModelConfig, layer: int, expert: int) -> list[Piece]:
        """Both matrices, then both biases."""
        size, hidden, count = config.expert_size, config.hidden_size, config.experts
        shapes = {"gate_up_proj": (count, hidden, 2 * size), "down_proj": (count, size, hidden)}
        shapes |= _bias_shapes(config)
        return [Piece(_NAME.format(layer=layer, part=part), shape, expert) for part, shape in shapes.items()]


@dataclass(frozen=True)
class FourBitExperts:
    """The same in MXFP4: blocks of 32 numbers of four bits, two to a byte, with one power of two for each block."""

    arrangement = "mxfp4"

    def pieces(self, config: ModelConfig, layer: int, expert: int) -> list[Piece]:
        """Blocks and scales of the first matrix, of the second, then both biases."""
        size, hidden, count = config.expert_size, config.hidden_size, config.experts
        shapes: dict[str, tuple[int, ...]] = {}
        for part, rows, columns in (("gate_up_proj", 2 * size, hidden), ("down_proj", hidden, size)):
            shapes[f"{part}_blocks"] = (count, rows, columns // 32, 16)
            shapes[f"{part}_scales"] = (count, rows, columns // 32)
        shapes |= _bias_shapes(config)
        return [Piece(_NAME.format(layer=layer, part=part), shape, expert) for part, shape in shapes.items()]


def _bias_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    count = config.experts
    return {"gate_up_proj_bias": (count, 2 * config.expert_size), "down_proj_bias": (count, config.hidden_size)}


def _config(raw: ConfigJson) -> dict[str, Any]:
    raw.need("swiglu_alpha", 1.702)
    raw.need("swiglu_limit", 7.0)
    return {
        **decoder_fields(raw, rotary_base=150_000.0),
        **routed_fields(raw, "intermediate_size", renormalise=True),
        **window_fields(raw, is_default=True),
        "norm_eps": raw.number("rms_norm_eps", default=1e-5),
        "attention_bias": "all" if raw.flag("attention_bias", True) else "none",
        "attention_sinks": True,
        "router_bias": True,
        "expert_kind": "clamped",
    }


FAMILY = Family(
    kind="gpt_oss",
    architecture="GptOssForCausalLM",
    config=_config,
    renames=((".mlp.gate.", ".mlp.router."),),
    experts=(TransposedExperts(), FourBitExperts()),
)
