"""A Mixture-of-Experts model out of a dense one (sparse upcycling, arXiv 2212.05055): every feed-forward block becomes
experts that are copies of it behind a router whose weights sum to 1, so the output is the dense model's."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from protocol.models import ModelConfig
from runtime.moe.checkpoint import (
    ModelFolder,
    dense_tensors,
    expert_tensors,
    finish_folder,
    partial_folder,
    write_shard,
)
from runtime.moe.experts import ExpertWeights
from runtime.moe.layout import DamagedCheckpoint
from runtime.moe.model import MoeModel, initial_tensor


def upcycled_config(dense: ModelConfig, experts: int, active: int) -> ModelConfig:
    """The shape of the model with experts. Raises ValueError (from pydantic) for impossible counts."""
    changes = {
        "dense_layers": 0,
        "dense_size": 0,
        "experts": experts,
        "experts_per_token": active,
        "expert_size": dense.dense_size,
        "router": "top_k",
        "renormalise": True,
    }
    return ModelConfig(**{**{name: getattr(dense, name) for name in ModelConfig.model_fields}, **changes})


def upcycle(source: Path, folder: Path, experts: int = 8, active: int = 2, seed: int = 0) -> ModelConfig:
    """Write `folder` from the dense model in `source`, one shard for each layer's experts.

    Raises `DamagedCheckpoint` if the source cannot be read or has experts already.
    """
    with ModelFolder(source) as opened:
        if opened.config.expert_layers:
            raise DamagedCheckpoint(f"{source}: has experts already; only a dense model can be upcycled")
        config, dense = upcycled_config(opened.config, experts, active), opened.dense_model()
    shutil.rmtree(partial_folder(folder), ignore_errors=True)
    write_shard(folder, 0, config.layers + 1, dense_tensors(_routed(dense, config, seed)))
    for layer in range(config.layers):
        block = _block(dense, layer)
        copies = {(layer, expert): block for expert in range(experts)}
        write_shard(folder, layer + 1, config.layers + 1, expert_tensors(config, copies))
    finish_folder(folder, config, source=source)
    return config


@torch.no_grad()
def _routed(dense: MoeModel, config: ModelConfig, seed: int) -> MoeModel:
    model = MoeModel(config).requires_grad_(False)
    known = dict(dense.named_parameters())
    for name, parameter in model.named_parameters():
        parameter.copy_(known[name] if name in known else initial_tensor(name, parameter.shape, config.layers, seed))
    return model


def _block(dense: MoeModel, layer: int) -> ExpertWeights:
    gate, up, down = (_weight(dense, f"model.layers.{layer}.mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
    return ExpertWeights(torch.cat((gate, up)), down)


def _weight(model: MoeModel, name: str) -> Tensor:
    return model.get_parameter(name).detach()
