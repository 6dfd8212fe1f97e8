"""The same training in this process, at width 1, never disturbed: what any elastic run must equal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from protocol.jobspec import JobSpec, parse
from runtime.site.controller import LeaseKey, WorkerSlot
from runtime.training.decisions import all_items
from runtime.training.generation import form
from runtime.training.group import Group
from runtime.training.state import TrainState
from runtime.training.text import Batches, load_corpus
from runtime.training.trainer import Signals, Trainer


def tiny_spec(**train: object) -> JobSpec:
    """A job of a model in the manner of Yuan, small enough for 30 steps a second."""
    model = {"vocab_size": 300, "hidden_size": 32, "layers": 2, "heads": 2, "experts": 4, "expert_size": 32}
    part = {"model": model, "steps": 60, "global_batch": 6, "sequence_length": 24, "output": "out"}
    part |= {"snapshot_every": 4, "checkpoint_every": 20, "optimizer": {"learning_rate": 3e-3, "warmup_steps": 5}}
    return parse({"kind": "train", "name": "tiny", "width": {"min": 2, "max": 4}, "train": part | train})


def slots(spec: JobSpec, workers: list[str], shares: list[int] | None = None) -> tuple[WorkerSlot, ...]:
    """Workers on a node each, two cohorts, experts dealt round, or in uneven shares."""
    experts = all_items(spec.train.model.expert_layers, spec.train.model.experts)
    shares = shares or [1] * len(workers)
    deal = [worker for worker, count in zip(workers, shares, strict=True) for _ in range(count)]
    owned = {w: tuple(k for i, k in enumerate(experts) if deal[i % len(deal)] == w) for w in workers}
    return tuple(
        WorkerSlot(w, "trainer", LeaseKey(f"node-{w}", 1), ("cpu0",), owned[w], cohort=f"cohort-{i % 2}")
        for i, w in enumerate(workers)
    )


def run_undisturbed(spec: JobSpec, folder: Path) -> tuple[list[float], TrainState]:
    """Every step's loss, and the state at the end."""
    part = spec.train
    corpus = load_corpus(part.data, part.model.vocab_size, part.sequence_length, folder)
    state = TrainState(part.model)
    everything = all_items(part.model.expert_layers, part.model.experts)
    state.fresh(everything, part.seed)
    generation = form(1, slots(spec, ["only"]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        batches = Batches(corpus, part.seed, part.sequence_length)
        trainer = Trainer(spec, state, batches, Group(object(), 0, 1), generation)
        return [trainer.step(Signals()).loss for _ in range(part.steps)], state
    finally:
        torch.set_num_threads(threads)


def run_undisturbed_elsewhere(spec: JobSpec, folder: Path) -> tuple[list[float], dict]:
    """The same in a process set up as workers are: every step's loss, and every buffer of the state by item."""
    script = (
        "import sys, torch; from pathlib import Path; from protocol.jobspec import parse_json;"
        "from tests.training.undisturbed import run_undisturbed as run;"
        "losses, state = run(parse_json(sys.argv[1]), Path(sys.argv[2]));"
        "buffers = {item: state.buffer(item) for item in ('dense', *state.experts)};"
        "torch.save((losses, buffers), Path(sys.argv[2]) / 'undisturbed.pt')"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}
    command = [sys.executable, "-c", script, spec.model_dump_json(), str(folder)]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2], timeout=240)
    return torch.load(folder / "undisturbed.pt")
