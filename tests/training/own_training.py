"""A training function as a user would write it, with dropout and a tied weight, and the same run never disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from protocol.jobspec import JobSpec, parse, parse_json
from runtime.site.controller import LeaseKey, WorkerSlot
from runtime.training.generation import Source, Switch, form
from runtime.training.group import open_store
from runtime.training.orders import Orders
from runtime.training.session_worker import SessionWorker


class Net(nn.Module):
    """Embedding, hidden layer, and the embedding again to predict the next token; one parameter is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.hidden = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.2), nn.Linear(32, 16), nn.LayerNorm(16))
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        return self.head(self.hidden(self.embedding(tokens))) * self.scale


class Tokens:
    """Forty tokens in a circle, with a jump now and then."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = torch.arange(12) * (1 + index % 3) + index
        return {"tokens": start[:-1] % 40, "labels": start[1:] % 40}


def train(session: Any) -> None:
    """What the job runs."""
    model = session.model(Net())
    for batch in session.batches(Tokens()):
        session.step(cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten()))


def own_spec(function: str = "tests.training.own_training:train", **train_part: object) -> JobSpec:
    """A job of it, elastic between two and four workers."""
    part = {"function": function, "steps": 80, "global_batch": 10, "output": "out", "snapshot_every": 4}
    part |= {"checkpoint_every": 20, "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5, "weight_decay": 0.05}}
    spec = {"kind": "train", "name": "own", "width": {"min": 2, "max": 4}, "train": part | train_part}
    return parse(spec)


def own_slots(workers: list[str]) -> tuple[WorkerSlot, ...]:
    """Workers on a node each; there are no experts."""
    return tuple(WorkerSlot(w, "trainer", LeaseKey(f"node-{w}", 1), ("cpu0",)) for w in workers)


class Said:
    """Stands for a pulse: keeps what the worker tells."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def tell(self, kind: str, **facts: Any) -> None:
        self.events.append({"kind": kind, **facts})


def run_alone(spec: JobSpec, folder: Path) -> list[dict[str, Any]]:
    """What a single worker says from its start to its end."""
    (slot,), orders, said = own_slots(["only"]), Orders(), Said()
    store = open_store("127.0.0.1")
    orders.give(Switch(form(1, [slot]), ("only",), ("127.0.0.1", store.port), Source("fresh")))
    SessionWorker(slot, spec, folder, orders, said).run()
    return said.events


def run_alone_elsewhere(spec: JobSpec, folder: Path) -> list[float]:
    """Every step's loss, in a process set up as workers are; the model lies in `folder`/out."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}
    command = [sys.executable, "-m", "tests.training.own_training", spec.model_dump_json(), str(folder)]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2], timeout=240)
    return json.loads((folder / "losses.json").read_text())


if __name__ == "__main__":
    told = run_alone(parse_json(sys.argv[1]), Path(sys.argv[2]))
    losses = [event["loss"] for event in told if event["kind"] == "step"]
    Path(sys.argv[2], "losses.json").write_text(json.dumps(losses))
