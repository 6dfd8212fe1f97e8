"""A slow decoder in float64, written token by token from the papers' formulas: what runtime.moe must agree with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protocol.models import ModelConfig
from runtime.moe.experts import ExpertWeights, LocalExperts
from runtime.moe.model import MoeModel


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean() + eps) * weight


def attention_router(x: Tensor, query: Tensor, key: Tensor, value: Tensor, active: int) -> dict[int, float]:
    q, k, v = query @ x, key @ x, value @ x
    logits = []
    for i in range(len(q)):
        row = [math.exp(float(q[i] * k[j])) for j in range(len(k))]
        logits.append(sum(a * float(v[j]) for j, a in enumerate(row)) / sum(row))
    return softmax_choice(logits, active)


def softmax_choice(logits: list[float], active: int) -> dict[int, float]:
    weights = [math.exp(x - max(logits)) for x in logits]
    chosen = sorted(range(len(weights)), key=lambda e: (-weights[e], e))[:active]
    total = sum(weights[e] for e in chosen)
    return {e: weights[e] / total for e in chosen}


def sigmoid_choice(logits: list[float], bias: list[float], active: int) -> dict[int, float]:
    scores = [1 / (1 + math.exp(-x)) for x in logits]
    chosen = sorted(range(len(scores)), key=lambda e: -(scores[e] + bias[e]))[:active]
    total = sum(scores[e] for e in chosen)
    return {e: scores[e] / total for e in chosen}


def expert(x: Tensor, weights: ExpertWeights) -> Tensor:
    w1, w2 = weights.w1.detach().double(), weights.w2.detach().double()
    half = w1.shape[0] // 2
    gate, value = w1[:half] @ x, w1[half:] @ x
    return w2 @ (gate / (1 + torch.exp(-gate)) * value)


def filtered(sequence: list[Tensor], p: dict[str, Tensor], prefix: str, eps: float) -> list[Tensor]:
    w1, b1 = p[f"{prefix}.conv1.weight"][..., 0], p[f"{prefix}.conv1.bias"]
    w2, b2 = p[f"{prefix}.conv2.weight"][..., 0], p[f"{prefix}.conv2.bias"]
    zero = torch.zeros_like(sequence[0])
    middle = [w1[:, :, 0] @ (sequence[t - 1] if t else zero) + w1[:, :, 1] @ x + b1 for t, x in enumerate(sequence)]
    blank = torch.zeros_like(b1)
    out = [w2[:, :, 0] @ (middle[t - 1] if t else blank) + w2[:, :, 1] @ y + b2 for t, y in enumerate(middle)]
    norm = p[f"{prefix}.output_layernorm.weight"]
    return [rms_norm(x + z, norm, eps) for x, z in zip(sequence, out, strict=True)]


def rotated(x: Tensor, position: int, config: ModelConfig) -> Tensor:
    size = int(config.attention_head_size * config.rotary_fraction) // 2 * 2
    y = x.clone()
    for i in range(size // 2):
        angle = position * config.rotary_base ** (-2 * i / size)
        a, b = float(x[i]), float(x[i + size // 2])
        y[i] = a * math.cos(angle) - b * math.sin(angle)
        y[i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
    return y


def attention(xs: list[Tensor], p: dict[str, Tensor], prefix: str, config: ModelConfig) -> list[Tensor]:
    d, share = config.attention_head_size, config.heads // config.key_value_heads
    fs = filtered(xs, p, f"{prefix}.lf_gate", config.norm_eps) if config.localised_filtering else xs
    out = []
    for t in range(len(xs)):
        heads = []
        for h in range(config.heads):
            g = h // share
            q = rotated((p[f"{prefix}.q_proj.weight"] @ fs[t])[h * d : (h + 1) * d], t, config)
            scores, values = [], []
            for s in range(t + 1):
                k = rotated((p[f"{prefix}.k_proj.weight"] @ fs[s])[g * d : (g + 1) * d], s, config)
                scores.append(float(q @ k) / math.sqrt(d))
                values.append((p[f"{prefix}.v_proj.weight"] @ xs[s])[g * d : (g + 1) * d])
            weights = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
            heads.append(sum(w * v for w, v in zip(weights, values, strict=True)))
        out.append(p[f"{prefix}.o_proj.weight"] @ torch.cat(heads))
    return out


def choice(x: Tensor, p: dict[str, Tensor], prefix: str, config: ModelConfig) -> dict[int, float]:
    active = config.experts_per_token
    if config.router == "attention":
        parts = [p[f"{prefix}.{name}.weight"] for name in ("query", "key", "value")]
        return attention_router(x, *parts, active)
    logits = (p[f"{prefix}.weight"] @ x).tolist()
    if config.router == "top_k":
        return softmax_choice(logits, active)
    return sigmoid_choice(logits, p[f"{prefix}.e_score_correction_bias"].tolist(), active)


def logits(model: MoeModel, experts: LocalExperts, ids: list[int]) -> Tensor:
    """Logits (tokens, vocabulary) of one sequence."""
    config, p = model.config, {n: t.detach().double() for n, t in model.named_parameters(remove_duplicate=False)}
    xs = [p["model.embed_tokens.weight"][i] for i in ids]
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        normed = [rms_norm(x, p[f"{prefix}.input_layernorm.weight"], config.norm_eps) for x in xs]
        xs = [x + y for x, y in zip(xs, attention(normed, p, f"{prefix}.self_attn", config), strict=True)]
        normed = [rms_norm(x, p[f"{prefix}.post_attention_layernorm.weight"], config.norm_eps) for x in xs]
        for t, x in enumerate(normed):
            for e, weight in choice(x, p, f"{prefix}.mlp.gate", config).items():
                xs[t] = xs[t] + weight * expert(x, experts.experts[layer, e])
    return torch.stack([p["lm_head.weight"] @ rms_norm(x, p["model.norm.weight"], config.norm_eps) for x in xs])
