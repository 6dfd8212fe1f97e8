"""Causal self-attention with grouped heads, a rotary part, and a cache that the caller passes in.

T tokens, L tokens held, H query heads, G key and value heads, d head size, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from protocol.models import ModelConfig
from runtime.moe.cache import SequenceCache
from runtime.moe.filtering import LocalisedFiltering
from runtime.moe.key_value_pool import DecodeStep
from runtime.moe.norm import RMSNorm
from runtime.moe.packing import Packing
from runtime.moe.rotary import Rotary


@dataclass(frozen=True)
class Scoring:
    """How a layer's scores are made. `scale`: None is 1 / sqrt(d). `window`: tokens seen, or None for all.

    `sinks` (H,): a score per head that takes weight and gives no value. `value_size`: values are the first so many
    numbers of the keys, and only keys are cached.
    """

    scale: float | None = None
    window: int | None = None
    sinks: Tensor | None = None
    value_size: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a causal mask is all there is to it."""
        return self.window is None and self.sinks is None


class Attention(nn.Module):
    """Queries and keys from the filtered input (if there is a filter), values from the plain one."""

    def __init__(self, config: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.heads, config.key_value_heads, config.attention_head_size
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        bias = config.attention_bias != "none"
        self.lf_gate = LocalisedFiltering(config.hidden_size, config.norm_eps) if config.localised_filtering else None
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias == "all")
        norm = {"none": None, "head": (self.head_size,) * 2, "whole": (queries, keys)}[config.query_key_norm]
        self.q_norm, self.k_norm = (RMSNorm(size, config.norm_eps) for size in norm) if norm else (None, None)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if config.attention_sinks else None
        self.rotary = Rotary(config)
        self._norms_whole, self._clip = config.query_key_norm == "whole", config.query_key_value_clip
        self._window = config.window if layer % config.window_every == 0 else None
        self._scale = _scaled(config, self.head_size)

    def forward(
        self,
        x_TD: Tensor,
        packing: Packing,
        tables: tuple[Tensor, Tensor],
        layer: int,
        caches: list[SequenceCache] | None,
    ) -> Tensor:
        """Attention output (T, D). Appends to the caches, if given, but does not advance them."""
        filtered_TD = self.lf_gate(x_TD, packing, layer, caches) if self.lf_gate is not None else x_TD
        q_THd = self.rotary.turn(self._heads(self.q_proj(filtered_TD), self.heads, self.q_norm), *tables)
        k_TGd = self.rotary.turn(self._heads(self.k_proj(filtered_TD), self.kv_heads, self.k_norm), *tables)
        v_TGd = self._heads(self.v_proj(x_TD), self.kv_heads, None)
        scoring = Scoring(self._scale, self._window, self.sinks)
        return self.o_proj(attend(q_THd, k_TGd, v_TGd, packing, layer, caches, scoring).flatten(1))

    def _heads(self, x: Tensor, count: int, norm: RMSNorm | None) -> Tensor:
        if norm is not None and self._norms_whole:
            x = norm(x)
        if self._clip is not None:
            x = x.clamp(-self._clip, self._clip)
        x_THd = x.unflatten(1, (count, self.head_size))
        return norm(x_THd) if norm is not None and not self._norms_whole else x_THd


def _scaled(config: ModelConfig, size: int) -> float | None:
    stretch = config.rotary_scaling.score_scale if config.rotary_scaling else 1.0
    return None if stretch == 1.0 else stretch * size**-0.5


def attend(
    q_THd: Tensor,
    k_TGd: Tensor,
    v_TGd: Tensor,
    packing: Packing,
    layer: int,
    caches: list[SequenceCache] | None,
    scoring: Scoring,
) -> Tensor:
    """Each token's weighted sum of the values that it may see, (T, H, d)."""
    if caches is None and packing.uniform_length is not None:
        return _attend_uniform(q_THd, k_TGd, v_TGd, packing.uniform_length, scoring)
    return _attend_each(q_THd, k_TGd, v_TGd, packing, layer, caches, scoring)


def _attend_uniform(q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor, length: int, scoring: Scoring) -> Tensor:
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q_THd, k_TGd, v_TGd))
    return _weighted(q, k, v, 0, scoring).transpose(1, 2).flatten(0, 1)


def _attend_each(
    q_THd: Tensor,
    k_TGd: Tensor,
    v_TGd: Tensor,
    packing: Packing,
    layer: int,
    caches: list[SequenceCache] | None,
    scoring: Scoring,
) -> Tensor:
    parts, together = [q_THd[:0, :, : v_TGd.shape[2]]], 0
    if packing.step is not None and scoring.sinks is None:
        together = packing.step.count
        parts.append(_attend_step(q_THd[:together], k_TGd[:together], v_TGd[:together], packing.step, layer, scoring))
    for n in range(together, len(packing.lengths)):
        rows = slice(packing.starts[n], packing.starts[n] + packing.lengths[n])
        q, k, v = (x[rows].transpose(0, 1) for x in (q_THd, k_TGd, v_TGd))
        if caches is not None and scoring.value_size is not None:
            k, _ = caches[n].append(layer, k, v[..., :0])
            v = k[..., : scoring.value_size]
        elif caches is not None:
            k, v = caches[n].append(layer, k, v)
        y_1HTd = _weighted(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), packing.offsets[n], scoring)
        parts.append(y_1HTd.squeeze(0).transpose(0, 1))
    return torch.cat(parts)


def _attend_step(q_NHd: Tensor, k_NGd: Tensor, v_NGd: Tensor, step: DecodeStep, layer: int, scoring: Scoring) -> Tensor:
    """Attention (N, H, d) of one new token a sequence. Query heads that share a key take the place of tokens."""
    is_latent = scoring.value_size is not None
    k_NGLd, v_NGLd = step.extended(layer, k_NGd, v_NGd[..., :0] if is_latent else v_NGd)
    if is_latent:
        v_NGLd = k_NGLd[..., : scoring.value_size]
    q_NGRd = q_NHd.unflatten(1, (k_NGd.shape[1], -1))
    seen = step.seen(scoring.window)
    return scaled_dot_product_attention(q_NGRd, k_NGLd, v_NGLd, attn_mask=seen, scale=scoring.scale).flatten(1, 2)


def _weighted(q_BHTd: Tensor, k_BGLd: Tensor, v_BGLd: Tensor, offset: int, scoring: Scoring) -> Tensor:
    """Attention of tokens that follow `offset` others of the same sequence."""
    length, mask = q_BHTd.shape[2], None
    if not scoring.is_plain or (length > 1 and offset > 0):
        mask = _mask(length, offset, scoring.window, q_BHTd.device)
    if scoring.sinks is not None and mask is not None:
        k_BGLd, v_BGLd, mask = _with_sinks(k_BGLd, v_BGLd, mask, scoring.sinks)
    return scaled_dot_product_attention(
        q_BHTd,
        k_BGLd,
        v_BGLd,
        attn_mask=mask,
        is_causal=mask is None and length > 1,
        scale=scoring.scale,
        enable_gqa=q_BHTd.shape[1] != k_BGLd.shape[1],
    )


def _mask(length: int, offset: int, window: int | None, device: torch.device) -> Tensor:
    seen_TL = torch.ones(length, offset + length, dtype=torch.bool, device=device).tril(offset)
    return seen_TL if window is None else seen_TL.triu(offset - window + 1)


def _with_sinks(k_BGLd: Tensor, v_BGLd: Tensor, seen_TL: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One more token, of zeros, whose score is the sink: it takes its weight and adds nothing."""
    k, v = (torch.cat((x, x.new_zeros(*x.shape[:2], 1, x.shape[3])), dim=2) for x in (k_BGLd, v_BGLd))
    scores_TL = torch.zeros_like(seen_TL, dtype=k.dtype).masked_fill(~seen_TL, float("-inf"))
    sinksT1 = sinks.to(k.dtype).view(-1, 1, 1).expand(-1, len(seen_TL), 1)
    return k, v, torch.cat((scores_TL.expand(len(sinks), -1, -1), sinksT1), dim=2)
