"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), as attention of all heads to one latent vector.

A head's key is `W_k c` beside a rotary part that all heads share, and its value `W_v c`, where c is the token's latent.
`q (W_k c) = (q W_k) c`, so queries are brought to the latent space and the cache holds c alone; the weighted sum
of latents becomes values afterwards.

T tokens, H heads, D hidden size, n size without and r with a position, l rank of the latent, v value size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protocol.models import ModelConfig
from runtime.moe.attention import Scoring, attend
from runtime.moe.cache import SequenceCache
from runtime.moe.norm import RMSNorm
from runtime.moe.packing import Packing
from runtime.moe.rotary import Rotary

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the model's other norms have."""


class LatentSelfAttention(nn.Module):
    """Queries from the hidden vector or from a latent of their own, keys and values from one latent per token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        latent = config.latent
        assert latent is not None
        self.heads, self.sizes = config.heads, latent
        queries, bias = config.heads * (latent.plain_size + latent.rotary_size), config.attention_bias != "none"
        if latent.query_rank is None:
            self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.hidden_size, latent.query_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(latent.query_rank, LATENT_EPS)
            self.q_b_proj = nn.Linear(latent.query_rank, queries, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, latent.rank + latent.rotary_size, bias=bias)
        self.kv_a_layernorm = RMSNorm(latent.rank, LATENT_EPS)
        self.kv_b_proj = nn.Linear(latent.rank, config.heads * (latent.plain_size + latent.value_size), bias=False)
        self.o_proj = nn.Linear(config.heads * latent.value_size, config.hidden_size, bias=bias)
        self.rotary = Rotary(config)
        stretch = config.rotary_scaling.score_scale if config.rotary_scaling else 1.0
        scale = stretch * (latent.plain_size + latent.rotary_size) ** -0.5
        self._scoring = Scoring(scale=scale, value_size=latent.rank)

    def forward(
        self,
        x_TD: Tensor,
        packing: Packing,
        tables: tuple[Tensor, Tensor],
        layer: int,
        caches: list[SequenceCache] | None,
    ) -> Tensor:
        """Attention output (T, D). Appends to the caches, if given, but does not advance them."""
        key_Hnl, value_Hvl = self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split(
            [self.sizes.plain_size, self.sizes.value_size], dim=1
        )
        plain_THn, turning_THr = self._queries(x_TD).split([self.sizes.plain_size, self.sizes.rotary_size], dim=2)
        query_THl = torch.einsum("thn,hnl->thl", plain_THn, key_Hnl)
        q = torch.cat((query_THl, self.rotary.turn(turning_THr, *tables)), dim=2)
        c_Tl, turning_Tr = self.kv_a_proj_with_mqa(x_TD).split([self.sizes.rank, self.sizes.rotary_size], dim=1)
        c_T1l = self.kv_a_layernorm(c_Tl).unsqueeze(1)
        k = torch.cat((c_T1l, self.rotary.turn(turning_Tr.unsqueeze(1), *tables)), dim=2)
        y_THl = attend(q, k, c_T1l, packing, layer, caches, self._scoring)
        return self.o_proj(torch.einsum("thl,hvl->thv", y_THl, value_Hvl).flatten(1))

    def _queries(self, x_TD: Tensor) -> Tensor:
        if self.sizes.query_rank is None:
            q = self.q_proj(x_TD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD)))
        return q.unflatten(1, (self.heads, -1))
