"""Experts spread over the workers of a generation: tokens go to the owners and come back, both with autograd.

T tokens here, K experts per token, N (token, expert) pairs sent, M pairs received, W workers, E experts of a layer.
Pairs are worked on in the order (expert, sender's rank, token). As ranks hold consecutive parts of the global batch,
that order, and so every expert's arithmetic, is the same at any width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.moe.experts import ExpertId, ExpertWeights, group_by_expert, inverse, permute, spread, weigh
from runtime.moe.grouped_experts import kernel_for
from runtime.training.generation import Generation
from runtime.training.group import Group


class ExpertParallel:
    """The `ExpertExecutor` of a training worker. Every member must call it, tokens or not."""

    def __init__(
        self,
        group: Group,
        generation: Generation,
        experts: Mapping[ExpertId, ExpertWeights],
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`shape`: layers, experts per layer. `dtype`: of what is sent and multiplied; results are in it too."""
        self._group = group
        self._dtype = dtype
        layers, per_layer = shape
        self._layers = [_Layout.of(generation, layer, per_layer, group.rank) for layer in range(layers)]
        self.rows_run = 0  # through this worker's experts, forward
        self._experts = [[experts[layer, e] for e in self._layers[layer].mine] for layer in range(layers)]

    def __call__(self, layer: int, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """See `runtime.moe.experts.ExpertExecutor`. Raises `PeerLost`."""
        layout = self._layers[layer]
        x_TD = x_TD.to(self._dtype)
        # 1. sort pairs by (owner, expert)
        grouped = group_by_expert(layout.place.to(expert_ids_TK.device)[expert_ids_TK], len(layout.place))
        # 2. say how many come, then send them
        sent_E = torch.tensor(grouped.counts, dtype=torch.long)
        arriving = self._group.all_to_all(sent_E, layout.owned, [len(layout.mine)] * self._group.size)
        arriving_WE = arriving.view(self._group.size, len(layout.mine))
        send = [int(part.sum()) for part in sent_E.split(layout.owned)]
        receive = arriving_WE.sum(dim=1).tolist()
        x_MD = _AllToAll.apply(spread(x_TD, grouped, expert_ids_TK.shape[1]), self._group, send, receive)
        # 3. bring pairs of one expert together, run, undo
        counts = arriving_WE.sum(dim=0).tolist()
        y_MD = (
            self._run_unsorted(layer, x_MD, arriving_WE, counts)
            if self._group.size > 1
            else self._run(layer, x_MD, counts)
        )
        # 4. send back and sum
        return weigh(_AllToAll.apply(y_MD, self._group, receive, send), grouped, weights_TK)

    def _run_unsorted(self, layer: int, x_MD: Tensor, arriving_WE: Tensor, counts: list[int]) -> Tensor:
        """Rows in the order (sender, expert, token), outputs too."""
        workers, mine = arriving_WE.shape
        labels_M = torch.arange(mine).repeat(workers).repeat_interleave(arriving_WE.flatten())
        order_M = torch.argsort(labels_M.to(x_MD.device), stable=True)
        back_M = inverse(order_M)
        return permute(self._run(layer, permute(x_MD, order_M, back_M), counts), back_M, order_M)

    def _run(self, layer: int, x_MD: Tensor, counts: list[int]) -> Tensor:
        experts = self._experts[layer]
        self.rows_run += len(x_MD)
        return kernel_for(x_MD)(x_MD, counts, experts) if experts else x_MD


class _Layout:
    """Where a layer's experts are: `place[e]` orders them by (owner, expert), `owned[w]` counts them by owner."""

    def __init__(self, place: Tensor, owned: list[int], mine: list[int]) -> None:
        self.place, self.owned, self.mine = place, owned, mine

    @staticmethod
    def of(generation: Generation, layer: int, per_layer: int, rank: int) -> _Layout:
        by_owner = [sorted(e for at, e in member.slot.experts if at == layer) for member in generation.members]
        placed = [e for owned in by_owner for e in owned]
        if sorted(placed) != list(range(per_layer)):
            raise ValueError(f"layer {layer}: experts {placed} are not each of {per_layer} exactly once")
        place = torch.empty(per_layer, dtype=torch.long)
        place[torch.tensor(placed)] = torch.arange(per_layer)
        return _Layout(place, [len(owned) for owned in by_owner], by_owner[rank])


class _AllToAll(torch.autograd.Function):
    """Rows to their owners; gradients the other way."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, group: Group, send: list[int], receive: list[int]) -> Tensor:
        ctx.group, ctx.send, ctx.receive = group, send, receive
        out = group.all_to_all(x_ND, send, receive)
        return out if out is not x_ND else x_ND.view_as(x_ND)

    @staticmethod
    def backward(ctx, grad_MD: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.group.all_to_all(grad_MD, ctx.receive, ctx.send), None, None, None
