"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) on flat pieces, with linear warm-up and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
def update(pieces: Sequence[Flat], options: Optimizer, rate: float, updates: int, gradient_scale: float) -> None:
    """One update, the `updates`-th (from 1), of pieces of one device, with their gradients scaled (clipping)."""
    device = pieces[0].grad.device
    # torch divides by this scale, in the same pass over the memory
    scale = None if gradient_scale == 1.0 else torch.tensor(1 / gradient_scale, device=device)
    count = torch.tensor(float(updates), device=device)
    decayed = [(piece, slice(piece.decayed)) for piece in pieces if piece.decayed]
    others = [(piece, slice(piece.decayed, None)) for piece in pieces if piece.decayed < piece.grad.numel()]
    for decay, parts in ((options.weight_decay, decayed), (0.0, others)):
        if parts:
            value, mean, square = ([piece.buffer[row, part] for piece, part in parts] for row in range(3))
            torch._fused_adamw_(
                value,
                [piece.grad[part] for piece, part in parts],
                mean,
                square,
                [],
                [count] * len(parts),
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
