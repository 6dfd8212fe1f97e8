"""What config.json says in the same words for every family in the manner of Llama: sizes, rotary embedding, windows."""

from __future__ import annotations

import math
from typing import Any

from protocol.models import RotaryScaling
from runtime.moe.layout import ConfigJson


def decoder_fields(raw: ConfigJson, *, rotary_base: float = 10_000.0, scale_scores: bool = False) -> dict[str, Any]:
    """Fields of `ModelConfig` that all these families share, for a model without experts' details."""
    raw.need("hidden_act", "silu")
    raw.need("mlp_bias", False)
    rotary = {**raw.content, **(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    return {
        "vocab_size": raw.whole("vocab_size"),
        "hidden_size": raw.whole("hidden_size"),
        "layers": raw.whole("num_hidden_layers"),
        "heads": raw.whole("num_attention_heads"),
        "kv_heads": raw.whole("num_key_value_heads", default=None),
        "head_size": raw.whole("head_dim", default=None),
        "norm_eps": raw.number("rms_norm_eps", default=1e-6),
        "tie_embeddings": raw.flag("tie_word_embeddings"),
        "localised_filtering": False,
        "router": "top_k",
        "rotary_base": float(rotary.get("rope_theta") or rotary_base),
        "rotary_fraction": float(rotary.get("partial_rotary_factor") or 1.0),
        "rotary_scaling": _scaling(raw, rotary, scale_scores),
    }


def dense_fields(raw: ConfigJson) -> dict[str, Any]:
    """Fields of a model whose layers all have a dense feed-forward block."""
    layers = raw.whole("num_hidden_layers")
    size = raw.whole("intermediate_size")
    return {"dense_layers": layers, "dense_size": size, "experts": 1, "experts_per_token": 1, "expert_size": size}


def routed_fields(raw: ConfigJson, size: str, *, renormalise: bool | None = None) -> dict[str, Any]:
    """Fields of the experts. `size` names their width; `renormalise` is None where the file says it."""
    return {
        "experts": raw.whole("num_experts", "num_local_experts", "n_routed_experts"),
        "experts_per_token": raw.whole("num_experts_per_tok"),
        "expert_size": raw.whole(size),
        "renormalise": raw.flag("norm_topk_prob") if renormalise is None else renormalise,
    }


def refuse_sparse_steps(raw: ConfigJson) -> None:
    """Only models whose every layer has experts: no public model of these families has others."""
    raw.need("decoder_sparse_step", 1)
    raw.need("mlp_only_layers", [])


def window_fields(raw: ConfigJson, *, is_default: bool) -> dict[str, Any]:
    """Fields of a sliding window. `is_default`: it is in use unless `use_sliding_window` says otherwise."""
    window = raw.whole("sliding_window", default=None)
    if not window or not raw.flag("use_sliding_window", is_default):
        return {}
    kinds = raw.get("layer_types", ["sliding_attention"] * raw.whole("num_hidden_layers"))
    slides = [kind == "sliding_attention" for kind in kinds]
    every = next((n for n in range(1, len(slides) + 1) if slides == [i % n == 0 for i in range(len(slides))]), None)
    if not any(slides):
        return {}
    if every is None:
        raise raw.wrong("layer_types", "is an order of sliding and full layers that Fallow does not run")
    return {"window": window, "window_every": every}


def _scaling(raw: ConfigJson, rotary: dict[str, Any], scale_scores: bool) -> RotaryScaling | None:
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise raw.wrong("rope_scaling", f"is of type {kind!r}; Fallow knows linear, llama3 and yarn")
    length = rotary.get("original_max_position_embeddings") or rotary.get("max_position_embeddings") or 8192
    factor = rotary.get("factor") or rotary.get("max_position_embeddings", length) / length
    fields: dict[str, Any] = {"kind": kind, "factor": float(factor), "trained_length": int(length)}
    if kind == "llama3":
        fields["low_frequency"] = float(rotary["low_freq_factor"])
        fields["high_frequency"] = float(rotary["high_freq_factor"])
    if kind == "yarn":
        fields |= _yarn(rotary, float(factor), scale_scores)
    return RotaryScaling(**fields)


def _yarn(rotary: dict[str, Any], factor: float, scale_scores: bool) -> dict[str, Any]:
    part, whole = rotary.get("mscale"), rotary.get("mscale_all_dim")
    amplitude = rotary.get("attention_factor")
    if amplitude is None:
        amplitude = _magnitude(factor, part) / _magnitude(factor, whole) if part and whole else _magnitude(factor, 1.0)
    return {
        "beta_fast": float(rotary.get("beta_fast") or 32.0),
        "beta_slow": float(rotary.get("beta_slow") or 1.0),
        "whole_dimensions": bool(rotary.get("truncate", True)),
        "amplitude": float(amplitude),
        "score_scale": _magnitude(factor, whole) ** 2 if scale_scores and whole else 1.0,
    }


def _magnitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
