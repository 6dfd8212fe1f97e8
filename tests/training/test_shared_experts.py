"""Shared blocks and dense first layers in a training step: loss and gradients against those of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.moe.checkpoint import ModelFolder
from runtime.moe.experts import LocalExperts
from runtime.moe.model import MoeModel
from runtime.training.flat import DensePiece
from runtime.training.grains import Replica, losses
from tests.moe.hf_models import saved


@pytest.mark.parametrize("variant", ["qwen2_moe", "deepseek_v3"])
def test_loss_and_gradients_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    theirs = saved(variant, tmp_path)
    with ModelFolder(tmp_path) as opened:
        model, experts = opened.dense_model().requires_grad_(True), opened.experts()
    rows = torch.randint(0, 60, (4, 13), generator=torch.Generator().manual_seed(3))
    theirs.zero_grad()
    logits = theirs(rows[:, :-1]).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum")
    expected.backward()
    loss, gradient = _ours(model, experts, rows)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    compared = [name for name in gradient if name in wanted and wanted[name].shape == gradient[name].shape]
    assert any("shared_expert" in name for name in compared)
    assert len(compared) > 15
    for name in compared:
        assert torch.allclose(gradient[name], wanted[name].double(), atol=2e-4, rtol=1e-3), name


def _ours(model: MoeModel, experts: LocalExperts, rows: torch.Tensor) -> tuple[float, dict[str, Any]]:
    """The sum of token losses, and each dense parameter's gradient under its name in transformers."""
    dense = DensePiece(model)
    replicas = [Replica(model, dense) for _ in range(2)]
    sums = losses(replicas, [rows[:1], rows[1:]], experts, model.config.hidden_size)
    torch.stack(sums).sum().backward()
    total_P = torch.zeros(dense.size, dtype=torch.float64)
    for replica in replicas:
        replica.add_gradient(total_P)
    found = {}
    for name, parameter in model.named_parameters():
        start, end = dense.place(parameter)
        found[_their_name(name, model)] = total_P[start:end].view(parameter.shape)
    return float(torch.stack(sums).sum().detach()), found


def _their_name(name: str, model: MoeModel) -> str:
    return name.replace("shared_experts.", "shared_expert.") if model.config.shared_gate else name
