"""Rotary position embedding (Su et al., arXiv 2104.09864) and its stretchings for long contexts.

T tokens, r rotary dimensions (the first r of a head).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from protocol.models import ModelConfig, RotaryScaling


class Rotary:
    """Turns the first part of each head; pairs are halves of it, or neighbours."""

    def __init__(self, config: ModelConfig) -> None:
        whole = config.latent.rotary_size if config.latent else config.attention_head_size
        self.size = int(whole * config.rotary_fraction) // 2 * 2
        exponents = torch.arange(0, self.size, 2, dtype=torch.float64) / max(self.size, 1)
        self._frequencies = config.rotary_base**-exponents
        self._interleaved = config.rotary_interleaved
        self._amplitude = 1.0
        if config.rotary_scaling is not None:
            self._frequencies = _stretched(self._frequencies, config.rotary_base, config.rotary_scaling)
            self._amplitude = config.rotary_scaling.amplitude

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (T, 1, r) each."""
        angles = positions.double().unsqueeze(1) * self._frequencies.to(positions.device)
        angles_T1r = torch.cat((angles, angles), dim=1).unsqueeze(1)
        return (angles_T1r.cos() * self._amplitude).to(dtype), (angles_T1r.sin() * self._amplitude).to(dtype)

    def turn(self, x_THd: Tensor, cos_T1r: Tensor, sin_T1r: Tensor) -> Tensor:
        """The same vectors, turned by their positions; neighbours come out as halves, which no product notices."""
        turned, rest = x_THd[..., : self.size], x_THd[..., self.size :]
        if self._interleaved:
            turned = torch.cat((turned[..., 0::2], turned[..., 1::2]), dim=-1)
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos_T1r + torch.cat((-second, first), dim=-1) * sin_T1r
        return torch.cat((turned, rest), dim=-1)


def _stretched(frequencies: Tensor, base: float, scaling: RotaryScaling) -> Tensor:
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    kept = _llama3_share(frequencies, scaling) if scaling.kind == "llama3" else _yarn_share(frequencies, base, scaling)
    return frequencies * kept + slow * (1 - kept)


def _llama3_share(frequencies: Tensor, scaling: RotaryScaling) -> Tensor:
    turns = scaling.trained_length * frequencies / (2 * math.pi)
    return ((turns - scaling.low_frequency) / (scaling.high_frequency - scaling.low_frequency)).clamp(0, 1)


def _yarn_share(frequencies: Tensor, base: float, scaling: RotaryScaling) -> Tensor:
    size = 2 * len(frequencies)
    first, last = (
        size * math.log(scaling.trained_length / (turns * 2 * math.pi)) / (2 * math.log(base))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.whole_dimensions:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    places = torch.arange(len(frequencies), dtype=torch.float64)
    return 1 - ((places - first) / max(last - first, 0.001)).clamp(0, 1)
