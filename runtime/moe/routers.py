"""Which experts see a token, and with what weight. All routers work in fp32, whatever the model's type.

T tokens, D hidden size, E experts, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from protocol.models import ModelConfig


class AttentionRouter(nn.Module):
    """Yuan 2.0-M32's router: experts attend to each other before they are chosen.

    `A[i, j] = softmax over j of q_i * k_j` (no scale), `logit_i = sum_j A[i, j] v_j`, softmax over experts, the K
    largest, renormalised.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.active = config.experts_per_token
        self.query = nn.Linear(config.hidden_size, config.experts, bias=False)
        self.key = nn.Linear(config.hidden_size, config.experts, bias=False)
        self.value = nn.Linear(config.hidden_size, config.experts, bias=False)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts (T, K) and their weights (T, K), which sum to 1."""
        x_TD = x_TD.float()
        q_TE, k_TE, v_TE = (
            nn.functional.linear(x_TD, part.weight.float()) for part in (self.query, self.key, self.value)
        )
        mixing_TEE = torch.softmax(q_TE.unsqueeze(2) * k_TE.unsqueeze(1), dim=2)
        logits_TE = torch.matmul(mixing_TEE, v_TE.unsqueeze(2)).squeeze(2)
        return _largest(torch.softmax(logits_TE, dim=1), self.active)


class TopKRouter(nn.Module):
    """Softmax over a linear map, the K largest (Mixtral, Qwen, OLMoE), of the best groups (DeepSeek-V2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.active = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.experts, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.experts)) if config.router_bias else None
        self._weigh = Weighing(config)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts (T, K) and their weights (T, K)."""
        bias = None if self.bias is None else self.bias.float()
        scores_TE = torch.softmax(nn.functional.linear(x_TD.float(), self.weight.float(), bias), dim=1)
        allowed_TE = self._weigh.limited(scores_TE, best_of_group=1, barred=0.0)
        ids_TK = torch.topk(allowed_TE, self.active, dim=1).indices
        return ids_TK, self._weigh(scores_TE.gather(1, ids_TK))


class SigmoidBiasRouter(nn.Module):
    """Sigmoid scores; a bias that evens out the load acts on the choice only (DeepSeek-V3, arXiv 2412.19437)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.active = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(config.experts), requires_grad=False)
        self._weigh = Weighing(config)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts (T, K) and their weights (T, K)."""
        scores_TE = torch.sigmoid(nn.functional.linear(x_TD.float(), self.weight.float()))
        biased_TE = scores_TE + self.e_score_correction_bias
        allowed_TE = self._weigh.limited(biased_TE, best_of_group=2, barred=float("-inf"))
        ids_TK = torch.topk(allowed_TE, self.active, dim=1).indices
        return ids_TK, self._weigh(scores_TE.gather(1, ids_TK))

    @torch.no_grad()
    def rebalance(self, tokens_E: Tensor, rate: float = 1e-3) -> None:
        """Raise the bias of experts that saw fewer tokens than the mean, lower that of the others."""
        tokens_E = tokens_E.to(self.e_score_correction_bias)
        self.e_score_correction_bias += rate * torch.sign(tokens_E.mean() - tokens_E)


class Weighing:
    """What the routers of a configuration have in common: groups of experts, and weights from scores.

    P groups of M experts each.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._groups, self._allowed = config.expert_groups, config.groups_per_token
        self._renormalise, self._scale = config.renormalise, config.routed_scale

    def limited(self, scores_TE: Tensor, best_of_group: int, barred: float) -> Tensor:
        """Scores with experts of all but the best groups at `barred`; a group counts as its best few together."""
        if self._groups == 1:
            return scores_TE
        scores_TPM = scores_TE.unflatten(1, (self._groups, -1))
        best = min(best_of_group, scores_TPM.shape[2])
        groups_TP = torch.topk(scores_TPM, best, dim=2).values.sum(dim=2)
        chosen_TA = torch.topk(groups_TP, self._allowed, dim=1).indices
        is_barred_TP = torch.ones_like(groups_TP, dtype=torch.bool).scatter(1, chosen_TA, False)
        return scores_TPM.masked_fill(is_barred_TP.unsqueeze(2), barred).flatten(1)

    def __call__(self, scores_TK: Tensor) -> Tensor:
        """Weights of the chosen experts."""
        if self._renormalise:
            scores_TK = scores_TK / scores_TK.sum(dim=1, keepdim=True).clamp_min(1e-20)
        return scores_TK if self._scale == 1.0 else scores_TK * self._scale


def _largest(probabilities_TE: Tensor, active: int) -> tuple[Tensor, Tensor]:
    weights_TK, ids_TK = torch.topk(probabilities_TE, active, dim=1)
    return ids_TK, weights_TK / weights_TK.sum(dim=1, keepdim=True)


def build_router(config: ModelConfig) -> nn.Module:
    """The router that the configuration names."""
    routers = {"attention": AttentionRouter, "top_k": TopKRouter, "sigmoid_bias": SigmoidBiasRouter}
    return routers[config.router](config)
