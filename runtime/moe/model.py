"""The decoder: embeddings, blocks of attention and routed experts, and the head. Experts are somebody else's.

T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from protocol.models import ModelConfig
from runtime.moe.attention import Attention
from runtime.moe.cache import SequenceCache
from runtime.moe.experts import ExpertExecutor, ExpertId, ExpertWeights, LocalExperts, expert_shapes
from runtime.moe.key_value_pool import decode_step
from runtime.moe.latent import LatentSelfAttention
from runtime.moe.norm import RMSNorm
from runtime.moe.packing import Packing
from runtime.moe.routers import build_router


class FeedForward(nn.Module):
    """A gated SiLU block that every token passes."""

    def __init__(self, hidden_size: int, size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, size, bias=False)
        self.up_proj = nn.Linear(hidden_size, size, bias=False)
        self.down_proj = nn.Linear(size, hidden_size, bias=False)

    def forward(self, x_TD: Tensor, executor: ExpertExecutor | None = None) -> Tensor:
        """`down (silu(gate x) * (up x))`, (T, D)."""
        return self.down_proj(silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))


class Experts(nn.Module):
    """The routed part of a block: holds the router and the shared block, calls the executor for the experts."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer - config.dense_layers  # as experts count them
        self.gate = build_router(config)
        self.shared_experts = FeedForward(config.hidden_size, config.shared_size) if config.shared_size else None
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False) if config.shared_gate else None

    def forward(self, x_TD: Tensor, executor: ExpertExecutor) -> Tensor:
        """Weighted sum of the chosen experts' outputs, and the shared block's, (T, D)."""
        ids_TK, weights_TK = self.gate(x_TD)
        return self.with_shared(x_TD, executor(self.layer, x_TD, ids_TK, weights_TK))

    def with_shared(self, x_TD: Tensor, routed_TD: Tensor) -> Tensor:
        """The routed experts' sum for tokens `x_TD`, and the shared block's output, if there is one."""
        if self.shared_experts is None:
            return routed_TD
        y_TD = self.shared_experts(x_TD)
        if self.shared_expert_gate is not None:
            y_TD = torch.sigmoid(self.shared_expert_gate(x_TD)) * y_TD
        return routed_TD + y_TD


class Block(nn.Module):
    """Pre-norm attention and feed-forward (experts, or one dense block), each with a residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = LatentSelfAttention(config) if config.latent else Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        is_dense = layer < config.dense_layers
        self.mlp = FeedForward(config.hidden_size, config.dense_size) if is_dense else Experts(config, layer)

    def forward(
        self,
        x_TD: Tensor,
        packing: Packing,
        tables: tuple[Tensor, Tensor],
        layer: int,
        executor: ExpertExecutor,
        caches: list[SequenceCache] | None,
    ) -> Tensor:
        """Hidden vectors after this block."""
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), packing, tables, layer, caches)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD), executor)


class Trunk(nn.Module):
    """Everything between token ids and the last hidden vectors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self, ids_T: Tensor, packing: Packing, executor: ExpertExecutor, caches: list[SequenceCache] | None
    ) -> Tensor:
        """Normed hidden vectors of the last block, (T, D)."""
        x_TD = self.embed_tokens(ids_T)
        tables = self.layers[0].self_attn.rotary.tables(packing.positions, x_TD.dtype)
        for layer, block in enumerate(self.layers):
            x_TD = block(x_TD, packing, tables, layer, executor, caches)
        return self.norm(x_TD)


class MoeModel(nn.Module):
    """The dense part of a Mixture-of-Experts language model. Parameter names are those of the checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids_BS: Tensor, executor: ExpertExecutor) -> Tensor:
        """Training: logits (B * S, V) of B whole sequences of S tokens."""
        packing = Packing.uniform(ids_BS.shape[0], ids_BS.shape[1], ids_BS.device)
        return self.lm_head(self.model(ids_BS.flatten(), packing, executor, None))

    @torch.no_grad()
    def extend(self, parts: Sequence[Tensor], caches: Sequence[SequenceCache], executor: ExpertExecutor) -> Tensor:
        """Serving: append `parts[n]` (token ids) to sequence n, prompts and decode tokens alike.

        Returns the logits (N, V) after the last token of each. Every part has at least one token. If the executor
        raises, the caches hold what they held before, and the same call may be made again.
        """
        ids_T = torch.cat(list(parts)).to(self.model.embed_tokens.weight.device)
        lengths = tuple(len(part) for part in parts)
        packing = Packing(lengths, tuple(c.length for c in caches), ids_T.device, decode_step(caches, lengths))
        hidden_TD = self.model(ids_T, packing, executor, list(caches))
        for cache, length in zip(caches, packing.lengths, strict=True):
            cache.advance(length)
        return self.lm_head(hidden_TD[packing.last_rows])


def initial_tensor(name: str, shape: Sequence[int], layers: int, seed: int) -> Tensor:
    """A parameter's first value: a function of (seed, name) alone, so any worker can make any part.

    Norms 1, biases 0, matrices normal with standard deviation 0.02, those that write to the residual stream
    scaled by 1 / sqrt(2 layers).
    """
    if name.endswith("norm.weight"):
        return torch.ones(tuple(shape))
    if name.endswith(("bias", "sinks")):
        return torch.zeros(tuple(shape))
    scale = 0.02 / math.sqrt(2 * layers) if name.endswith(("o_proj.weight", "w2.weight")) else 0.02
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.randn(tuple(shape), generator=generator) * scale


@torch.no_grad()
def initialise_dense(model: MoeModel, seed: int) -> None:
    """Give every dense parameter its first value."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_tensor(name, parameter.shape, model.config.layers, seed))


def initial_expert(config: ModelConfig, key: ExpertId, seed: int) -> ExpertWeights:
    """An expert's first value."""
    shapes = zip(("w1", "w2"), expert_shapes(config.hidden_size, config.expert_size), strict=True)
    layer, expert = key[0] + config.dense_layers, key[1]
    prefix = f"model.layers.{layer}.mlp.experts.{expert}"
    return ExpertWeights(*(initial_tensor(f"{prefix}.{w}.weight", shape, config.layers, seed) for w, shape in shapes))


def all_experts(config: ModelConfig) -> list[ExpertId]:
    """Every (layer, expert) of the model, in order."""
    return [(layer, expert) for layer in range(config.expert_layers) for expert in range(config.experts)]


def initial_experts(config: ModelConfig, seed: int) -> LocalExperts:
    """All experts with their first values, in this process."""
    return LocalExperts({key: initial_expert(config, key, seed) for key in all_experts(config)}, config.experts)
