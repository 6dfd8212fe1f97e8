"""Which dense parameters a model has, by our names, and their shapes. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.models import LatentAttention, ModelConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def dense_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter outside the experts, and the router's balancing bias."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        attention = _latent(config, config.latent) if config.latent else _attention(config)
        shapes |= {f"{prefix}.self_attn.{name}": shape for name, shape in attention}
        feed_forward = _block("", hidden, config.dense_size) if layer < config.dense_layers else _experts(config)
        shapes |= {f"{prefix}.mlp.{name}": shape for name, shape in feed_forward}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _attention(config: ModelConfig) -> Shapes:
    hidden, size = config.hidden_size, config.attention_head_size
    queries, keys = config.heads * size, config.key_value_heads * size
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield f"{name}.weight", (rows, hidden)
        if config.attention_bias != "none":
            yield f"{name}.bias", (rows,)
    yield "o_proj.weight", (hidden, queries)
    if config.attention_bias == "all":
        yield "o_proj.bias", (hidden,)
    if config.query_key_norm != "none":
        is_whole = config.query_key_norm == "whole"
        yield "q_norm.weight", (queries if is_whole else size,)
        yield "k_norm.weight", (keys if is_whole else size,)
    if config.attention_sinks:
        yield "sinks", (config.heads,)
    if config.localised_filtering:
        yield from _filtering(hidden, hidden // 2)


def _filtering(hidden: int, half: int) -> Shapes:
    yield "lf_gate.conv1.weight", (half, hidden, 2, 1)
    yield "lf_gate.conv1.bias", (half,)
    yield "lf_gate.conv2.weight", (hidden, half, 2, 1)
    yield "lf_gate.conv2.bias", (hidden,)
    yield "lf_gate.output_layernorm.weight", (hidden,)


def _latent(config: ModelConfig, latent: LatentAttention) -> Shapes:
    hidden, bias = config.hidden_size, config.attention_bias != "none"
    queries, cached = config.heads * (latent.plain_size + latent.rotary_size), latent.rank + latent.rotary_size
    if latent.query_rank is None:
        yield "q_proj.weight", (queries, hidden)
    else:
        yield "q_a_proj.weight", (latent.query_rank, hidden)
        yield "q_a_layernorm.weight", (latent.query_rank,)
        yield "q_b_proj.weight", (queries, latent.query_rank)
    yield "kv_a_proj_with_mqa.weight", (cached, hidden)
    yield "kv_a_layernorm.weight", (latent.rank,)
    yield "kv_b_proj.weight", (config.heads * (latent.plain_size + latent.value_size), latent.rank)
    yield "o_proj.weight", (hidden, config.heads * latent.value_size)
    if bias:
        if latent.query_rank is not None:
            yield "q_a_proj.bias", (latent.query_rank,)
        yield "kv_a_proj_with_mqa.bias", (cached,)
        yield "o_proj.bias", (hidden,)


def _experts(config: ModelConfig) -> Shapes:
    matrix = (config.experts, config.hidden_size)
    if config.router == "attention":
        yield from ((f"gate.{name}.weight", matrix) for name in ("query", "key", "value"))
    else:
        yield "gate.weight", matrix
    if config.router_bias:
        yield "gate.bias", (config.experts,)
    if config.router == "sigmoid_bias":
        yield "gate.e_score_correction_bias", (config.experts,)
    if config.shared_size:
        yield from _block("shared_experts.", config.hidden_size, config.shared_size)
    if config.shared_gate:
        yield "shared_expert_gate.weight", (1, config.hidden_size)


def _block(prefix: str, hidden: int, size: int) -> Shapes:
    yield f"{prefix}gate_proj.weight", (size, hidden)
    yield f"{prefix}up_proj.weight", (size, hidden)
    yield f"{prefix}down_proj.weight", (hidden, size)
