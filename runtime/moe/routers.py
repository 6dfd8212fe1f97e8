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
    """Softmax over a linear map, the K largest, renormalised (Mixtral)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.active = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.experts, config.hidden_size))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts (T, K) and their weights (T, K), which sum to 1."""
        logits_TE = nn.functional.linear(x_TD.float(), self.weight.float())
        return _largest(torch.softmax(logits_TE, dim=1), self.active)


class SigmoidBiasRouter(nn.Module):
    """Sigmoid scores; a bias that evens out the load acts on the choice only (DeepSeek-V3, arXiv 2412.19437)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.active = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(config.experts), requires_grad=False)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts (T, K) and their weights (T, K), which sum to 1."""
        scores_TE = torch.sigmoid(nn.functional.linear(x_TD.float(), self.weight.float()))
        ids_TK = torch.topk(scores_TE + self.e_score_correction_bias, self.active, dim=1).indices
        chosen_TK = scores_TE.gather(1, ids_TK)
        return ids_TK, chosen_TK / chosen_TK.sum(dim=1, keepdim=True).clamp_min(1e-20)

    @torch.no_grad()
    def rebalance(self, tokens_E: Tensor, rate: float = 1e-3) -> None:
        """Raise the bias of experts that saw fewer tokens than the mean, lower that of the others."""
        tokens_E = tokens_E.to(self.e_score_correction_bias)
        self.e_score_correction_bias += rate * torch.sign(tokens_E.mean() - tokens_E)


def _largest(probabilities_TE: Tensor, active: int) -> tuple[Tensor, Tensor]:
    weights_TK, ids_TK = torch.topk(probabilities_TE, active, dim=1)
    return ids_TK, weights_TK / weights_TK.sum(dim=1, keepdim=True)


def build_router(config: ModelConfig) -> nn.Module:
    """The router that the configuration names."""
    routers = {"attention": AttentionRouter, "top_k": TopKRouter, "sigmoid_bias": SigmoidBiasRouter}
    return routers[config.router](config)
