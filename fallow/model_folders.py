"""What a served model is and needs, from its folder, before a job is submitted.

The folder is judged by `python -m runtime.moe inspect`, a process of its own: it needs no torch, but it is not ours
to import.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fallow.results import Node
from protocol.jobspec import JobSpec, ServePart, Width
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
    expert_bytes: int  # of one copy of one expert, the least that a shard holds; 0 for a dense model

    def lines(self) -> list[str]:
        """For people."""
        engines = f"each engine: {gib(self.engine_bytes)} of weights and up to {gib(self.cache_bytes)} of cache"
        if not self.expert_bytes:
            return [engines, "no shards: the model is dense"]
        return [
            engines,
            f"each shard: {gib(self.shard_bytes_at_min)} at the fewest shards, {gib(self.shard_bytes_at_max)} at the"
            f" most; one expert is {gib(self.expert_bytes)}",
        ]


@dataclass(frozen=True)
class Fit:
    """How a serve job would find the nodes that are lent now, were they all free for it."""

    fits: bool
    nodes: int  # that are lent
    devices: int  # of a kind that the job can use
    missing: tuple[str, ...]  # what would have to be there beside them, in words

    def lines(self) -> list[str]:
        """For people."""
        there = f"{self.devices} devices that the job can use are lent, on {self.nodes} nodes"
        return [f"{there}: it fits" if self.fits else f"{there}: it does not fit", *self.missing]


def fit(spec: JobSpec, need: MemoryNeed, nodes: Sequence[Node]) -> Fit:
    """Compare what a serve job needs at least with what is lent. A device takes one worker."""
    assert spec.serve is not None
    lent = [node for node in nodes if node.lease_state == "ready"]
    free = sorted(
        device.memory_bytes
        for node in lent
        for device in node.devices
        if device.id in node.spare_devices and (not spec.device_kinds or device.kind in spec.device_kinds)
    )
    each = {"engine": need.engine_bytes, "shard": need.shard_bytes_at_max}
    missing = []
    left = list(free)
    for role, width in spec.serve.roles.items():
        large = [size for size in left if size >= each[role]]
        taken = large[: width.min]
        for size in taken:
            left.remove(size)
        if len(taken) < width.min:
            short = width.min - len(taken)
            missing.append(f"missing: {short} more device(s) of {gib(each[role])} or more for {role}s")
    return Fit(not missing, len(lent), len(free), tuple(missing))


def memory_need(serve: ServePart) -> MemoryNeed:
    """What `serve` needs; its shape is filled in."""
    shape = serve.shape
    assert shape is not None
    pairs = shape.expert_layers * shape.experts
    shards = serve.roles.get("shard", Width())
    each = shape.expert_parameters * NUMBER_BYTES
    return MemoryNeed(
        engine_bytes=shape.dense_parameters * NUMBER_BYTES,
        cache_bytes=serve.max_batch * shape.cache_bytes(serve.max_length, NUMBER_BYTES),
        shard_bytes_at_min=-(-pairs * min(serve.copies, shards.min) // shards.min) * each,
        shard_bytes_at_max=-(-pairs * min(serve.copies, shards.max) // shards.max) * each,
        expert_bytes=each if pairs else 0,
    )


def gib(count: int) -> str:
    """A number of bytes, in the unit that suits it."""
    if count < 2**20:
        return f"{count / 2**10:.1f} KiB"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
