"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) on flat pieces, with linear warm-up and cosine decay."""

from __future__ import annotations

import math

import torch

from protocol.jobspec import Optimizer
from runtime.training.flat import Flat


def learning_rate(options: Optimizer, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: a function of the step alone."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(steps - options.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return options.learning_rate * (options.final_fraction + (1 - options.final_fraction) * cosine)


@torch.no_grad()
def update(piece: Flat, options: Optimizer, rate: float, updates: int, gradient_scale: float) -> None:
    """One update, the `updates`-th (from 1) of this piece, with its gradient scaled (clipping)."""
    value, mean, square = piece.buffer
    first, second = options.betas
    gradient = piece.grad if gradient_scale == 1.0 else piece.grad.mul_(gradient_scale)
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    if options.weight_decay and piece.decayed:
        value[: piece.decayed].mul_(1 - rate * options.weight_decay)
    root = (square / (1 - second**updates)).sqrt_().add_(options.eps)
    value.addcdiv_(mean, root, value=-rate / (1 - first**updates))


def clip_scale(squared_norm: float, limit: float | None) -> float:
    """The factor that brings a gradient of this squared norm to at most `limit`."""
    norm = math.sqrt(squared_norm)
    return 1.0 if limit is None or norm <= limit else limit / (norm + 1e-6)
