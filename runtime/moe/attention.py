"""Causal self-attention with grouped heads, a rotary part, and a cache that the caller passes in.

T tokens, H query heads, G key and value heads, d head size, D hidden size, r rotary dimensions (the first r of d).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from protocol.models import ModelConfig
from runtime.moe.cache import SequenceCache
from runtime.moe.filtering import LocalisedFiltering
from runtime.moe.packing import Packing


class Rotary:
    """Rotary embedding (Su et al., arXiv 2104.09864) of the first part of each head, halves paired."""

    def __init__(self, config: ModelConfig) -> None:
        self.size = int(config.attention_head_size * config.rotary_fraction) // 2 * 2
        exponents = torch.arange(0, self.size, 2, dtype=torch.float64) / max(self.size, 1)
        self._frequencies = config.rotary_base**-exponents

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (T, 1, r) each."""
        angles = positions.double().unsqueeze(1) * self._frequencies.to(positions.device)
        angles_T1r = torch.cat((angles, angles), dim=1).unsqueeze(1)
        return angles_T1r.cos().to(dtype), angles_T1r.sin().to(dtype)

    def turn(self, x_THd: Tensor, cos_T1r: Tensor, sin_T1r: Tensor) -> Tensor:
        """The same vectors, turned by their positions."""
        turned, rest = x_THd[..., : self.size], x_THd[..., self.size :]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos_T1r + torch.cat((-second, first), dim=-1) * sin_T1r
        return torch.cat((turned, rest), dim=-1)


class Attention(nn.Module):
    """Queries and keys from the filtered input (if there is a filter), values from the plain one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.heads, config.key_value_heads, config.attention_head_size
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        self.lf_gate = LocalisedFiltering(config.hidden_size, config.norm_eps) if config.localised_filtering else None
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.rotary = Rotary(config)

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
        q_THd = self.rotary.turn(self.q_proj(filtered_TD).unflatten(1, (self.heads, self.head_size)), *tables)
        k_TGd = self.rotary.turn(self.k_proj(filtered_TD).unflatten(1, (self.kv_heads, self.head_size)), *tables)
        v_TGd = self.v_proj(x_TD).unflatten(1, (self.kv_heads, self.head_size))
        if caches is None and packing.uniform_length is not None:
            y_THd = _attend_uniform(q_THd, k_TGd, v_TGd, packing.uniform_length)
        else:
            y_THd = _attend_each(q_THd, k_TGd, v_TGd, packing, layer, caches)
        return self.o_proj(y_THd.flatten(1))


def _attend_uniform(q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor, length: int) -> Tensor:
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q_THd, k_TGd, v_TGd))
    y = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return y.transpose(1, 2).flatten(0, 1)


def _attend_each(
    q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor, packing: Packing, layer: int, caches: list[SequenceCache] | None
) -> Tensor:
    parts = [q_THd[:0]]
    for n, (start, length) in enumerate(zip(packing.starts, packing.lengths, strict=True)):
        rows = slice(start, start + length)
        q, k, v = (x[rows].transpose(0, 1) for x in (q_THd, k_TGd, v_TGd))
        if caches is not None:
            k, v = caches[n].append(layer, k, v)
        parts.append(_attend_one(q, k, v, packing.offsets[n]).transpose(0, 1))
    return torch.cat(parts)


def _attend_one(q_HTd: Tensor, k_GLd: Tensor, v_GLd: Tensor, offset: int) -> Tensor:
    length = q_HTd.shape[1]
    mask = None
    if length > 1 and offset > 0:
        mask = torch.ones(length, offset + length, dtype=torch.bool, device=q_HTd.device).tril(offset)
    return scaled_dot_product_attention(
        q_HTd.unsqueeze(0),
        k_GLd.unsqueeze(0),
        v_GLd.unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None and length > 1,
        enable_gqa=q_HTd.shape[0] != k_GLd.shape[0],
    ).squeeze(0)
