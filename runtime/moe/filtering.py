"""Localised filtering of Yuan 2.0: two causal two-tap convolutions whose result feeds queries and keys.

T tokens, N sequences, D hidden size, C = D / 2 channels between the convolutions. Tap 0 takes the token before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.moe.cache import SequenceCache
from runtime.moe.norm import RMSNorm
from runtime.moe.packing import Packing


class TwoTapConvolution(nn.Module):
    """`y_t = W0 x_{t-1} + W1 x_t + b`, its weight stored as the published (out, in, 2, 1)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 2, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, before_TI: Tensor, x_TI: Tensor) -> Tensor:
        """Outputs (T, O) of tokens `x_TI` that follow `before_TI`."""
        taps = torch.stack((before_TI, x_TI), dim=-1).flatten(1)
        return nn.functional.linear(taps, self.weight.flatten(1), self.bias)


class LocalisedFiltering(nn.Module):
    """`RMSNorm(x + conv2(conv1(x)))`, causal. Decoding needs only the last two inputs of each sequence."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.conv1 = TwoTapConvolution(hidden_size, hidden_size // 2)
        self.conv2 = TwoTapConvolution(hidden_size // 2, hidden_size)
        self.output_layernorm = RMSNorm(hidden_size, eps)

    def forward(self, x_TD: Tensor, packing: Packing, layer: int, caches: list[SequenceCache] | None) -> Tensor:
        """Filtered hidden vectors, same shape; with caches, also remembers the last two inputs there."""
        state_N2D = _last_inputs(x_TD, packing, layer, caches)
        y_TC = self.conv1(_shifted(x_TD, packing, state_N2D[:, 1]), x_TD)
        before_NC = self.conv1(state_N2D[:, 0], state_N2D[:, 1]) * _has_history(packing, x_TD)
        z_TD = self.conv2(_shifted(y_TC, packing, before_NC), y_TC)
        if caches is not None:
            _remember(x_TD, packing, layer, caches)
        return self.output_layernorm(x_TD + z_TD)


def _last_inputs(x_TD: Tensor, packing: Packing, layer: int, caches: list[SequenceCache] | None) -> Tensor:
    if not caches:
        return x_TD.new_zeros(len(packing.lengths), 2, x_TD.shape[1])
    return torch.stack([cache.filter_inputs[layer] for cache in caches])


def _has_history(packing: Packing, like: Tensor) -> Tensor:
    # conv2 is padded with zeros, not with conv1's answer to zeros, before a sequence's first token
    return like.new_tensor([float(offset > 0) for offset in packing.offsets]).unsqueeze(1)


def _shifted(x_TI: Tensor, packing: Packing, before_NI: Tensor) -> Tensor:
    """Row t holds row t - 1; the first row of each sequence holds what came before it."""
    if x_TI.shape[0] == 0:
        return x_TI
    rolled = torch.cat((x_TI[:1], x_TI[:-1]))
    return rolled.index_copy(0, packing.start_rows, before_NI.to(rolled.dtype))


def _remember(x_TD: Tensor, packing: Packing, layer: int, caches: list[SequenceCache]) -> None:
    for cache, start, length in zip(caches, packing.starts, packing.lengths, strict=True):
        recent = torch.cat((cache.filter_inputs[layer], x_TD[start : start + length]))[-2:]
        cache.remember(layer, recent.detach())
