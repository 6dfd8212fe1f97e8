"""The global batch in grains, so that gradients are the same to the last bit at any width.

A grain is some whole sequences; a job's grains are fixed for its whole life, and a worker takes whole ones. Dense
parts run grain by grain (so every matrix product has the same shape wherever it runs), experts on all tokens at once
in their global order. Each grain's gradient is rounded to a grid of 2**-44 and summed in float64, where sums of such
numbers are exact up to 256, so their order does not matter. Without this, rounding flips a routing choice now and
then, and two runs drift apart (measured: 1e-3 of the loss within 25 steps; with it, nothing). After EasyScale
(arXiv 2208.14228), which fixes logical workers for the same end.

T tokens of a grain, D hidden size, K experts per token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from runtime.moe.experts import ExpertExecutor
from runtime.moe.model import Experts, MoeModel
from runtime.moe.packing import Packing
from runtime.training.flat import DensePiece
from runtime.training.memory import during

GRID = 384.0
"""Adding and taking away 1.5 * 2**8 rounds a float64 to the grid of 2**-44."""
GRAINS_EACH = 8
AT_ONCE = 1 << 15
"""Numbers that are rounded at a time: they stay in a core's cache from one pass to the next."""


def grain_count(global_batch: int, max_width: int) -> int:
    """Eight grains for each worker at full width: fine enough to share by speed, coarse enough to be fast."""
    return min(global_batch, GRAINS_EACH * max_width) if max_width > 1 else 1


class Replica:
    """The model once more, its parameters the same memory, its gradients its own: one for each grain of a worker."""

    def __init__(self, model: MoeModel, dense: DensePiece) -> None:
        self.model = copy.deepcopy(model)
        views = {id(p): (nn.Parameter(dense.view(p), p.requires_grad), dense.place(p)) for p in model.parameters()}
        for mine, original in zip(self.model.modules(), model.modules(), strict=True):
            for name, parameter in original._parameters.items():
                if parameter is not None:
                    mine._parameters[name] = views[id(parameter)][0]
        self._views = list(views.values())

    def add_gradient(self, total: Tensor) -> None:
        """Add this grain's gradient to a float64 sum, and forget it."""
        for parameter, (start, end) in self._views:
            if parameter.grad is not None:
                flat = parameter.grad.flatten()
                for part, sums in zip(flat.split(AT_ONCE), total[start:end].split(AT_ONCE), strict=True):
                    sums.add_(part.double().add_(GRID).sub_(GRID))
                parameter.grad = None


def losses(replicas: Sequence[Replica], rows: Sequence[Tensor], executor: ExpertExecutor, width: int) -> list[Tensor]:
    """Each grain's sum of token losses, for `rows[g]` (sequences, length + 1). `width`: D.

    A worker without a grain takes part all the same: the executor's collectives need everyone.
    """
    if not rows:
        return [_nothing(executor, width, replicas[0].model)]
    packings = [Packing.uniform(r.shape[0], r.shape[1] - 1, r.device) for r in rows]
    hidden = _trunk([replica.model for replica in replicas], [r[:, :-1].flatten() for r in rows], packings, executor)
    return [
        _loss(replica.model, x_TD, r[:, 1:].flatten()) for replica, x_TD, r in zip(replicas, hidden, rows, strict=False)
    ]


def _loss(model: MoeModel, x_TD: Tensor, next_T: Tensor) -> Tensor:
    with during(f"the logits of a grain, ({len(x_TD)}, {model.config.vocab_size}) float32,"):
        return cross_entropy(model.lm_head(model.model.norm(x_TD)).float(), next_T, reduction="sum")


def _trunk(
    models: Sequence[MoeModel], ids: Sequence[Tensor], packings: Sequence[Packing], executor: ExpertExecutor
) -> list[Tensor]:
    xs = [model.model.embed_tokens(ids_T) for model, ids_T in zip(models, ids, strict=False)]
    rotary = models[0].model.layers[0].self_attn.rotary
    tables = [rotary.tables(packing.positions, x_TD.dtype) for packing, x_TD in zip(packings, xs, strict=True)]
    for layer in range(len(models[0].model.layers)):
        blocks = [model.model.layers[layer] for model in models[: len(xs)]]
        tokens = sum(map(len, xs))
        with during(f"the attention of {tokens} tokens in layer {layer}"):
            xs = [
                x_TD + block.self_attn(block.input_layernorm(x_TD), packing, table, layer, None)
                for block, x_TD, packing, table in zip(blocks, xs, packings, tables, strict=True)
            ]
        with during(f"the feed-forward block of {tokens} tokens in layer {layer}"):
            normed = [block.post_attention_layernorm(x_TD) for block, x_TD in zip(blocks, xs, strict=True)]
            outputs = _feed_forward([block.mlp for block in blocks], normed, executor)
            xs = [x_TD + y_TD for x_TD, y_TD in zip(xs, outputs, strict=True)]
    return xs


def _feed_forward(blocks: Sequence[nn.Module], xs: Sequence[Tensor], executor: ExpertExecutor) -> list[Tensor]:
    """What a layer adds to each grain; the routed experts see all grains at once."""
    if not isinstance(blocks[0], Experts):
        return [block(x_TD) for block, x_TD in zip(blocks, xs, strict=True)]
    with torch.autocast(xs[0].device.type, enabled=False):  # which expert a token takes hangs on the last bits
        routes = [block.gate(x_TD) for block, x_TD in zip(blocks, xs, strict=True)]
    ids_TK, weights_TK = (torch.cat(part) for part in zip(*routes, strict=True))
    y_TD = executor(blocks[0].layer, torch.cat(list(xs)), ids_TK, weights_TK)
    parts = y_TD.split([len(x_TD) for x_TD in xs])
    return [block.with_shared(x_TD, y) for block, x_TD, y in zip(blocks, xs, parts, strict=True)]


def _nothing(executor: ExpertExecutor, width: int, model: MoeModel) -> Tensor:
    x_TD = torch.zeros(0, width, device=model.lm_head.weight.device).requires_grad_()
    active = model.config.experts_per_token
    ids_TK = torch.zeros(0, active, dtype=torch.long, device=x_TD.device)
    y_TD = x_TD
    for layer in range(model.config.expert_layers):
        y_TD = y_TD + executor(layer, y_TD, ids_TK, torch.zeros(0, active, device=x_TD.device))
    return y_TD.sum()
