"""The peer of `bench.rescale`: Ray Train's elastic `ScalingConfig`, used as its documentation says.

A periodic checkpoint, one more when a node's reclaim is announced, and `max_failures`. The same model, data, batch and
optimiser as ours; data-parallel, as a torch model in Ray Train is.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from protocol.jobspec import TrainPart, parse_json
from runtime.moe.experts import ExpertWeights, LocalExperts
from runtime.moe.model import MoeModel, all_experts, initial_expert, initialise_dense
from runtime.training.text import Batches, load_corpus, share

STATE = "state.pt"
LOOK_S = 1.0
"""How often Ray Train looks for nodes that were announced to leave; 5 s is its default."""


class Whole(nn.Module):
    """The model with all of its experts as parameters."""

    def __init__(self, part: TrainPart) -> None:
        super().__init__()
        assert part.model is not None
        self.dense = MoeModel(part.model)
        initialise_dense(self.dense, part.seed)
        self._keys = all_experts(part.model)
        first = [initial_expert(part.model, key, part.seed) for key in self._keys]
        self.matrices = nn.ParameterList([matrix for expert in first for matrix in expert])

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Logits (B * S, V)."""
        pairs = zip(self.matrices[::2], self.matrices[1::2], strict=True)
        experts = {key: ExpertWeights(*pair) for key, pair in zip(self._keys, pairs, strict=True)}
        return self.dense(ids_BS, LocalExperts(experts, self.dense.config.experts))


def train(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    spec = parse_json(config["spec"])
    assert spec.train is not None
    assert spec.train.model is not None
    part = spec.train
    corpus = load_corpus(part.data, part.model.vocab_size, part.sequence_length, Path(config["data"]))
    batches = Batches(corpus, part.seed, part.sequence_length)
    model = ray.train.torch.prepare_model(Whole(part))
    optimizer = torch.optim.AdamW(model.parameters(), lr=part.optimizer.learning_rate)
    context = ray.train.get_context()
    rank, width = context.get_world_rank(), context.get_world_size()
    first = _restore(model, optimizer, ray.train.get_checkpoint())
    has_saved = False
    for step in range(first, part.steps):
        _step(part, model, optimizer, batches.rows(step, *share(part.global_batch, width, rank)), width)
        if rank == 0:
            _tell(Path(config["steps"]), step + 1, width)
        is_announced = ray.train.get_preemption_info() is not None and not has_saved
        has_saved = has_saved or is_announced
        if is_announced or (step + 1) % config["every"] == 0:
            _save(model, optimizer, step + 1, rank)


def _step(part: TrainPart, model: nn.Module, optimizer: Any, rows: Tensor, width: int) -> None:
    logits = model(rows[:, :-1])
    loss = cross_entropy(logits.float(), rows[:, 1:].flatten(), reduction="sum")
    optimizer.zero_grad(set_to_none=True)
    (loss * width / (part.global_batch * part.sequence_length)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _restore(model: nn.Module, optimizer: Any, checkpoint: Any) -> int:
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE)
    getattr(model, "module", model).load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(model: nn.Module, optimizer: Any, step: int, rank: int) -> None:
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            state = {"model": getattr(model, "module", model).state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step}, Path(folder) / STATE)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, checkpoint=checkpoint)


def _tell(steps: Path, number: int, width: int) -> None:
    line = json.dumps({"number": number, "end_s": time.time(), "width": width})
    with steps.open("a") as file:
        file.write(line + "\n")


def main() -> None:
    """Run the job; for `bench.rescale`, which starts this as a process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--head", "--folder", "--spec"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--every", type=int, required=True, help="steps between checkpoints")
    parser.add_argument("--look-s", type=float, required=True, help="how often to look for nodes that came")
    options = parser.parse_args()
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = str(LOOK_S)
    _fit(options)


def _fit(options: argparse.Namespace) -> None:
    from runtime.site import ray_driver
    from runtime.site.head import RayHead

    head = RayHead(options.head, "127.0.0.1").read()
    assert head is not None
    kept = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
    ray_driver.connect(head)
    os.environ.update(kept)
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    spec = options.spec.read_text()
    width = parse_json(spec).width
    trainer = TorchTrainer(
        train,
        train_loop_config={
            "spec": spec,
            "data": str(options.folder / "data"),
            "steps": str(options.folder / "steps.jsonl"),
            "every": options.every,
        },
        scaling_config=ScalingConfig(
            num_workers=(width.min, width.max), elastic_resize_monitor_interval_s=options.look_s
        ),
        run_config=RunConfig(
            name="peer",
            storage_path=str(options.folder / "storage"),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
