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
    # torch divides by this scale, in the same pass over the memory
    scale = None if gradient_scale == 1.0 else torch.tensor(1 / gradient_scale, device=piece.grad.device)
    count = torch.tensor(float(updates), device=piece.grad.device)
    for decay, part in ((options.weight_decay, slice(piece.decayed)), (0.0, slice(piece.decayed, None))):
        value, mean, square = ([row] for row in piece.buffer[:, part])
        if value[0].numel():
            torch._fused_adamw_(
                value,
                [piece.grad[part]],
                mean,
                square,
                [],
                [count],
                lr=rate,
                beta1=options.betas[0],
                beta2=options.betas[1],
                weight_decay=decay,
                eps=options.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
                found_inf=None,
            )


def clip_scale(squared_norm: float, limit: float | None) -> float:
    """The factor that brings a gradient of this squared norm to at most `limit`."""
    norm = math.sqrt(squared_norm)
    return 1.0 if limit is None or norm <= limit else limit / (norm + 1e-6)
