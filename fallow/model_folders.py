"""What a served model is and needs, from its folder, before a job is submitted.

The folder is judged by `python -m runtime.moe inspect`, a process of its own: it needs no torch, but it is not ours
to import.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from protocol.jobspec import ServePart
from protocol.models import ModelConfig

NUMBER_BYTES = 4
"""Models are served in fp32."""
INSPECTION_TIMEOUT_S = 300.0


class UnusableModel(Exception):
    """The folder holds no model that Fallow can serve; says what is wrong and where."""


def read_model(folder: Path) -> ModelConfig:
    """The architecture in a folder; its tensors' names, shapes and files are checked too where they are there.

    Raises `UnusableModel`. A folder with config.json alone describes a model whose weights lie at the site.
    """
    only = [] if any(folder.glob("*.safetensors*")) else ["--config-only"]
    command = [sys.executable, "-m", "runtime.moe", "inspect", *only, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSPECTION_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnusableModel(f"{folder} could not be read within {INSPECTION_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise UnusableModel(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{folder}: unreadable")
    try:
        return ModelConfig.model_validate_json(json.dumps(json.loads(done.stdout)["config"]))
    except (ValueError, KeyError, ValidationError) as error:
        raise UnusableModel(f"{folder}: `python -m runtime.moe inspect` gave no description of a model") from error


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a served model needs on each worker, at both ends of the shards' width."""

    engine_bytes: int  # the dense part
    cache_bytes: int  # of a full batch of sequences of full length, on each engine beside the dense part
    shard_bytes_at_min: int
    shard_bytes_at_max: int
    expert_bytes: int  # of one copy of one expert, the least that a shard holds

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"each engine: {gib(self.engine_bytes)} of weights and up to {gib(self.cache_bytes)} of cache",
            f"each shard: {gib(self.shard_bytes_at_min)} at the fewest shards, {gib(self.shard_bytes_at_max)} at the"
            f" most; one expert is {gib(self.expert_bytes)}",
        ]


def memory_need(serve: ServePart) -> MemoryNeed:
    """What `serve` needs; its shape is filled in."""
    shape = serve.shape
    assert shape is not None
    pairs = shape.expert_layers * shape.experts
    each = shape.expert_parameters * NUMBER_BYTES
    return MemoryNeed(
        engine_bytes=shape.dense_parameters * NUMBER_BYTES,
        cache_bytes=serve.max_batch * shape.cache_bytes(serve.max_length, NUMBER_BYTES),
        shard_bytes_at_min=-(-pairs * min(serve.copies, serve.shards.min) // serve.shards.min) * each,
        shard_bytes_at_max=-(-pairs * min(serve.copies, serve.shards.max) // serve.shards.max) * each,
        expert_bytes=each if pairs else 0,
    )


def gib(count: int) -> str:
    """A number of bytes, in the unit that suits it."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
