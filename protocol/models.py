"""Shapes of Mixture-of-Experts language models: what a scheduler must know of a model to place it.

`ModelConfig` is the one description of an architecture in Fallow. The job spec carries it, `runtime.moe` builds
it, the planner reads its counts of layers, experts and bytes. It needs neither torch nor a checkpoint.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Width = Annotated[int, Field(ge=1, le=262_144)]
Factor = Annotated[float, Field(gt=0)]


class RotaryScaling(BaseModel):
    """How rotary frequencies are stretched so that a model reads more than it was first trained on.

    `linear` divides all of them by `factor`; `llama3` only the slow ones, with a ramp between `low_frequency` and
    `high_frequency` turns per `trained_length`; `yarn` (arXiv 2309.00071) ramps between `beta_fast` and `beta_slow`
    turns. `amplitude` multiplies the rotated part of queries and keys, `score_scale` the attention's scores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["linear", "llama3", "yarn"]
    factor: Factor
    trained_length: Annotated[int, Field(ge=1)] = 8192
    low_frequency: Factor = 1.0
    high_frequency: Factor = 4.0
    beta_fast: Factor = 32.0
    beta_slow: Factor = 1.0
    whole_dimensions: bool = Field(default=True, description="yarn: the ramp begins and ends at whole dimensions")
    amplitude: Factor = 1.0
    score_scale: Factor = 1.0


class LatentAttention(BaseModel):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): sizes of what keys and values are made from.

    Each head's query and key have `plain_size` dimensions without and `rotary_size` with a position; the rotary part of
    the key is the same for all heads. The cache holds `rank + rotary_size` numbers per token and layer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rank: Width
    query_rank: Width | None = None
    plain_size: Width
    rotary_size: Annotated[int, Field(ge=2, le=4096, multiple_of=2)]
    value_size: Width


class ModelConfig(BaseModel):
    """Sizes and choices of a decoder-only language model, most of whose feed-forward blocks are experts.

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

    dense_layers: Annotated[int, Field(ge=0, le=512)] = Field(
        default=0, description="the first so many layers have one dense feed-forward block instead of experts"
    )
    dense_size: Annotated[int, Field(ge=0, le=262_144)] = Field(default=0, description="width of a dense block")
    shared_size: Annotated[int, Field(ge=0, le=262_144)] = Field(
        default=0, description="width of the block that every token passes beside its experts; 0: none"
    )
    shared_gate: bool = Field(default=False, description="the shared block is weighed by a sigmoid of the token")
    expert_kind: Literal["silu", "clamped"] = Field(
        default="silu", description="clamped: with biases, clamped gate and value (GPT-OSS)"
    )
    renormalise: bool = Field(default=True, description="weights of a token's experts sum to 1 before routed_scale")
    routed_scale: Factor = 1.0
    router_bias: bool = False
    expert_groups: Annotated[int, Field(ge=1, le=4096)] = 1
    groups_per_token: Annotated[int, Field(ge=1, le=4096)] = 1

    latent: LatentAttention | None = None
    attention_bias: Literal["none", "qkv", "all"] = "none"
    attention_sinks: bool = Field(default=False, description="a learned score per head that takes weight from tokens")
    query_key_norm: Literal["none", "head", "whole"] = Field(
        default="none", description="RMS norm of each head's query and key, or of all heads' together"
    )
    query_key_value_clip: Factor | None = None
    window: Width | None = Field(default=None, description="tokens that a sliding layer sees, itself included")
    window_every: Annotated[int, Field(ge=1, le=512)] = Field(
        default=1, description="layers 0, n, 2n ... slide, the others see everything"
    )
    rotary_scaling: RotaryScaling | None = None
    rotary_interleaved: bool = Field(default=False, description="pairs are neighbours, not halves")

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

    @model_validator(mode="after")
    def _blocks_fit(self) -> ModelConfig:
        if self.dense_layers > self.layers:
            raise ValueError(f"dense_layers is {self.dense_layers} but there are only {self.layers} layers: lower it")
        if self.dense_layers and not self.dense_size:
            raise ValueError(f"dense_size is 0 but the first {self.dense_layers} layers are dense: give their width")
        if self.shared_gate and not self.shared_size:
            raise ValueError("shared_gate needs a shared block: give shared_size")
        if self.experts % self.expert_groups or self.groups_per_token > self.expert_groups:
            raise ValueError(
                f"{self.experts} experts in {self.expert_groups} groups, {self.groups_per_token} of them per token: "
                "experts must be a multiple of expert_groups, groups_per_token at most expert_groups"
            )
        reachable = self.experts // self.expert_groups * self.groups_per_token
        if self.experts_per_token > reachable:
            raise ValueError(f"experts_per_token is {self.experts_per_token} but a token's groups have {reachable}")
        if self.latent is not None and (self.localised_filtering or self.query_key_norm != "none"):
            raise ValueError("latent attention goes with neither localised_filtering nor query_key_norm")
        if self.router == "attention" and (self.router_bias or self.expert_groups > 1):
            raise ValueError("the attention router has neither a bias nor groups")
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
    def expert_layers(self) -> int:
        """Layers that have experts: the last ones. An expert's layer number counts from the first of them."""
        return self.layers - self.dense_layers

    @property
    def cache_heads(self) -> int:
        """Heads of what a token leaves in the cache of each layer."""
        return 1 if self.latent else self.key_value_heads

    @property
    def cache_key_size(self) -> int:
        """Numbers of one cached key."""
        return self.latent.rank + self.latent.rotary_size if self.latent else self.attention_head_size

    @property
    def cache_value_size(self) -> int:
        """Numbers of one cached value; 0 where values are made from the keys (latent attention)."""
        return 0 if self.latent else self.attention_head_size

    def cache_bytes(self, tokens: int, bytes_each: int = 4) -> int:
        """Memory that a sequence of `tokens` takes in the cache, its localised filters' inputs included."""
        each = self.cache_heads * (self.cache_key_size + self.cache_value_size)
        filtering = 2 * self.hidden_size if self.localised_filtering else 0
        return self.layers * (tokens * each + filtering) * bytes_each

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert (gate, value and output projections, and their biases)."""
        biases = 2 * self.expert_size + self.hidden_size if self.expert_kind == "clamped" else 0
        return 3 * self.hidden_size * self.expert_size + biases

    @property
    def dense_parameters(self) -> int:
        """Parameters outside the experts: embeddings, attention, filters, routers, norms, dense and shared blocks."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        layer = self._attention_parameters + self._filter_parameters + 2 * self.hidden_size
        feed_forward = self.dense_layers * 3 * self.hidden_size * self.dense_size
        feed_forward += self.expert_layers * (self._router_parameters + self._shared_parameters)
        return embeddings + self.hidden_size + self.layers * layer + feed_forward

    @property
    def _attention_parameters(self) -> int:
        if self.latent:
            return self._latent_parameters(self.latent)
        queries, keys = self.heads * self.attention_head_size, self.key_value_heads * self.attention_head_size
        biases = {"none": 0, "qkv": queries + 2 * keys, "all": queries + 2 * keys + self.hidden_size}
        norms = {"none": 0, "head": 2 * self.attention_head_size, "whole": queries + keys}
        sinks = self.heads if self.attention_sinks else 0
        projections = self.hidden_size * 2 * (queries + keys)
        return projections + biases[self.attention_bias] + norms[self.query_key_norm] + sinks

    def _latent_parameters(self, latent: LatentAttention) -> int:
        queries = self.heads * (latent.plain_size + latent.rotary_size)
        rank = latent.query_rank
        query = self.hidden_size * queries if rank is None else self.hidden_size * rank + rank + rank * queries
        cached = latent.rank + latent.rotary_size
        key_value = self.hidden_size * cached + latent.rank
        key_value += latent.rank * self.heads * (latent.plain_size + latent.value_size)
        biases = (rank or 0) + cached + self.hidden_size if self.attention_bias != "none" else 0
        return query + key_value + self.heads * latent.value_size * self.hidden_size + biases

    @property
    def _filter_parameters(self) -> int:
        half = self.hidden_size // 2
        return (2 * self.hidden_size * half * 2 + half + 2 * self.hidden_size) if self.localised_filtering else 0

    @property
    def _router_parameters(self) -> int:
        bias = self.experts if self.router_bias else 0
        return self.hidden_size * self.experts * (3 if self.router == "attention" else 1) + bias

    @property
    def _shared_parameters(self) -> int:
        return 3 * self.hidden_size * self.shared_size + (self.hidden_size if self.shared_gate else 0)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.dense_parameters + self.expert_layers * self.experts * self.expert_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through."""
        return self.dense_parameters + self.expert_layers * self.experts_per_token * self.expert_parameters


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
    "qwen3-30b-a3b": ModelConfig(
        vocab_size=151_936,
        hidden_size=2048,
        layers=48,
        heads=32,
        kv_heads=4,
        head_size=128,
        experts=128,
        experts_per_token=8,
        expert_size=768,
        router="top_k",
        localised_filtering=False,
        query_key_norm="head",
        rotary_fraction=1.0,
        rotary_base=1_000_000.0,
    ),
    "olmoe-1b-7b": ModelConfig(
        vocab_size=50_304,
        hidden_size=2048,
        layers=16,
        heads=16,
        experts=64,
        experts_per_token=8,
        expert_size=1024,
        router="top_k",
        renormalise=False,
        localised_filtering=False,
        query_key_norm="whole",
        rotary_fraction=1.0,
        norm_eps=1e-5,
    ),
    "deepseek-v3": ModelConfig(
        vocab_size=129_280,
        hidden_size=7168,
        layers=61,
        heads=128,
        experts=256,
        experts_per_token=8,
        expert_size=2048,
        dense_layers=3,
        dense_size=18_432,
        shared_size=2048,
        router="sigmoid_bias",
        routed_scale=2.5,
        expert_groups=8,
        groups_per_token=4,
        localised_filtering=False,
        latent=LatentAttention(rank=512, query_rank=1536, plain_size=128, rotary_size=64, value_size=128),
        rotary_fraction=1.0,
        rotary_interleaved=True,
        rotary_scaling=RotaryScaling(kind="yarn", factor=40.0, trained_length=4096, score_scale=1.8738542070926265),
    ),
}
