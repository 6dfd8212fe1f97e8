"""Writing Hugging Face folders: sharded safetensors, config.json, generation_config.json, tokenizer.json.

A folder is written by several processes, each its own shard, under a temporary name, and renamed when it is whole.
`runtime.moe.reading` reads them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from protocol.models import ModelConfig
from runtime.moe import names
from runtime.moe.experts import ExpertId, ExpertWeights, LocalExperts
from runtime.moe.export import config_json
from runtime.moe.headers import INDEX
from runtime.moe.layout import ConfigJson, DamagedCheckpoint
from runtime.moe.model import MoeModel
from runtime.moe.reading import ModelFolder, read_config
from runtime.moe.tokenizer_files import copy_tokenizer, write_tokenizer

__all__ = ["INDEX", "DamagedCheckpoint", "ModelFolder", "read_config"]  # of reading, for those who do both


def dense_tensors(model: MoeModel) -> dict[str, Tensor]:
    """The dense parameters under their checkpoint names and in their layout."""
    config = model.config
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if names.interleaves_queries(config):
        for query, key in names.query_key_pairs(config):
            ours[query], ours[key] = names.interleave(config, ours[query], ours[key])
    return {names.dense_name(config, name): tensor for name, tensor in ours.items()}


def expert_tensors(config: ModelConfig, experts: Mapping[ExpertId, ExpertWeights]) -> dict[str, Tensor]:
    """Experts under their checkpoint names."""
    return {
        name: tensor.detach()
        for key, weights in sorted(experts.items())
        for name, tensor in zip(names.expert_names(config, key), names.split_expert(config, weights), strict=True)
    }


def partial_folder(folder: Path) -> Path:
    """Where a folder grows until it is whole; beside it, so that the rename is atomic."""
    return folder.with_name(f".{folder.name}.partial")


def write_shard(folder: Path, index: int, count: int, tensors: Mapping[str, Tensor]) -> None:
    """Write shard `index` (from 0) of `count` into the partial folder. Raises OSError when the disk is full."""
    partial = partial_folder(folder)
    partial.mkdir(parents=True, exist_ok=True)
    path = partial / f"model-{index + 1:05d}-of-{count:05d}.safetensors"
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def finish_folder(
    folder: Path, config: ModelConfig, tokenizer_json: str | None = None, source: Path | None = None
) -> None:
    """Write everything beside the shards, then give the folder its name, replacing an older one.

    The tokenizer is either given, with token 0 ending texts, or taken over from the folder `source` with its settings.
    """
    partial = partial_folder(folder)
    weight_map, total = _survey(partial)
    _write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    ends = {"bos_token_id": 0, "eos_token_id": 0} if source is None else _ends(source)
    _write_json(partial / "config.json", config_json(config) | ends)
    if source is not None:
        copy_tokenizer(source, partial)
    elif tokenizer_json is not None:
        _write_json(partial / "generation_config.json", {**ends, "pad_token_id": 0})
        write_tokenizer(partial, tokenizer_json)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_folder(folder: Path, model: MoeModel, experts: LocalExperts, tokenizer_json: str) -> None:
    """Write a whole model from one process."""
    shutil.rmtree(partial_folder(folder), ignore_errors=True)
    write_shard(folder, 0, 2, dense_tensors(model))
    write_shard(folder, 1, 2, expert_tensors(model.config, experts.experts))
    finish_folder(folder, model.config, tokenizer_json)


def _ends(source: Path) -> dict[str, Any]:
    raw = ConfigJson.read(source / "config.json")
    return {name: raw.get(name) for name in ("bos_token_id", "eos_token_id")}


def _survey(partial: Path) -> tuple[dict[str, str], int]:
    weight_map: dict[str, str] = {}
    total = 0
    for path in sorted(partial.glob("model-*.safetensors")):
        total += path.stat().st_size
        with safe_open(path, framework="pt") as file:
            weight_map |= dict.fromkeys(file.keys(), path.name)
    return weight_map, total


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
