"""Shapes of Mixture-of-Experts language models: what a scheduler must know of a model to place it.

`ModelConfig` is the one description of an architecture in Fallow. The job spec carries it, `runtime.moe` builds
it, the planner reads its counts of layers, experts and bytes. It needs neither torch nor a checkpoint.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]


class ModelConfig(BaseModel):
    """Sizes and choices of a decoder-only language model whose feed-forward blocks are experts.

    Defaults are those of a small model in the manner of Yuan 2.0-M32 that trains on two CPU cores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    vocab_size: Annotated[int, Field(ge=2, le=1_000_000)] = 2048
    hidden_size: Annotated[int, Field(ge=8, le=65_536)] = 128
    layers: Annotated[int, Field(ge=1, le=512)] = 4
    heads: Annotated[int, Field(ge=1, le=1024)] = 4
    kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="as many as heads if left out"
    )
    head_size: Annotated[int, Field(ge=2, le=4096)] | None = Field(
        default=None, description="hidden_size / heads if left out"
    )
    experts: Annotated[int, Field(ge=1, le=4096)] = 8
    experts_per_token: Annotated[int, Field(ge=1, le=256)] = 2
    expert_size: Annotated[int, Field(ge=8, le=262_144)] = 256
    router: Literal["attention", "top_k", "sigmoid_bias"] = "attention"
    localised_filtering: bool = True
    rotary_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    rotary_base: Annotated[float, Field(gt=1)] = 10_000.0
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    tie_embeddings: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} but there are only {self.experts} experts: lower it"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.head_size is None and self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of heads ({self.heads}), or give head_size"
            )
        return self

    @property
    def attention_head_size(self) -> int:
        """Width of one attention head."""
        return self.head_size or self.hidden_size // self.heads

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return self.kv_heads or self.heads

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert (gate, value and output projections)."""
        return 3 * self.hidden_size * self.expert_size

    @property
    def dense_parameters(self) -> int:
        """Parameters outside the experts: embeddings, attention, filters, routers, norms."""
        attention = self.hidden_size * self.attention_head_size * 2 * (self.heads + self.key_value_heads)
        half = self.hidden_size // 2
        filtering = (2 * self.hidden_size * half * 2 + half + 2 * self.hidden_size) if self.localised_filtering else 0
        router = self.hidden_size * self.experts * (3 if self.router == "attention" else 1)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return embeddings + self.hidden_size + self.layers * (attention + filtering + router + 2 * self.hidden_size)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.dense_parameters + self.layers * self.experts * self.expert_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through."""
        return self.dense_parameters + self.layers * self.experts_per_token * self.expert_parameters


PRESETS: dict[str, ModelConfig] = {
    "yuan2-tiny": ModelConfig(),
    "yuan2-m32": ModelConfig(
        vocab_size=135_040,
        hidden_size=2048,
        layers=24,
        heads=16,
        head_size=256,
        experts=32,
        experts_per_token=2,
        expert_size=8192,
    ),
    "mixtral-8x7b": ModelConfig(
        vocab_size=32_000,
        hidden_size=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        experts=8,
        experts_per_token=2,
        expert_size=14_336,
        router="top_k",
        localised_filtering=False,
        rotary_fraction=1.0,
        rotary_base=1_000_000.0,
        norm_eps=1e-5,
    ),
}
