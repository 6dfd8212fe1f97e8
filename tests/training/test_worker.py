"""A worker alone in this process: what it says when it cannot work."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from protocol.jobspec import JobSpec, Optimizer
from runtime.training.generation import Source, Switch, form
from runtime.training.group import open_store
from runtime.training.orders import Orders
from runtime.training.pulse import Pulse
from runtime.training.worker import TrainWorker, explain
from tests.training.own_training import Said
from tests.training.undisturbed import slots, tiny_spec


def test_unusable_data_is_told_and_ends_the_worker(tmp_path: Path) -> None:
    source = tmp_path / "empty.txt"
    source.touch()
    pulse = Pulse("127.0.0.1")
    worker = TrainWorker(slots(tiny_spec(), ["a"])[0], tiny_spec(data=str(source)), tmp_path, Orders(), pulse)
    worker.run()
    assert worker.phase == "failed"
    assert pulse.count == 1
    pulse.close()


def run_one(spec: JobSpec, folder: Path) -> list[dict]:
    """What a worker says that trains alone from the beginning to the end."""
    (slot,), orders, said = slots(spec, ["only"]), Orders(), Said()
    store = open_store("127.0.0.1")
    orders.give(Switch(form(1, [slot]), ("only",), ("127.0.0.1", store.port), Source("fresh")))
    worker = TrainWorker(slot, spec, folder, orders, said)
    worker._become = lambda phase, **facts: _until_over(worker, phase, facts)  # a worker follows orders for ever
    with contextlib.suppress(Over):
        worker.run()
    return said.events


class Over(BaseException):
    """The worker has nothing more to do."""


def _until_over(worker: TrainWorker, phase: str, facts: dict) -> None:
    TrainWorker._become(worker, phase, **facts)
    if phase in ("finished", "failed"):
        raise Over


def test_it_starts_from_a_model_with_its_tokenizer_and_evaluates(tmp_path: Path) -> None:
    first = tiny_spec(steps=6, eval_data="pydoc", eval_every=3, eval_samples=5)
    told = run_one(first, tmp_path / "a")
    assert told[-1]["kind"] == "finished", told[-1]
    assert [event["step"] for event in told if event["kind"] == "evaluated"] == [3, 6]
    last = [event["loss"] for event in told if event["kind"] == "evaluated"][-1]
    model = str(tmp_path / "a" / "out")
    again = tiny_spec(steps=1, start=model, tokenizer=model, eval_data="pydoc", eval_every=1, eval_samples=5)
    again = again.model_copy(
        update={"train": again.train.model_copy(update={"optimizer": Optimizer(learning_rate=1e-9)})}
    )
    told = run_one(again, tmp_path / "b")
    assert told[-1]["kind"] == "finished", told[-1]
    assert next(e["loss"] for e in told if e["kind"] == "evaluated") == pytest.approx(last, rel=1e-4)
    other = tiny_spec(start=model, model={**first.train.model.model_dump(), "layers": 1})
    told = run_one(other, tmp_path / "c")
    assert "layers 2 instead of 1: give its architecture" in told[-1]["message"]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory: 8 TB")]
)
def test_a_lack_of_memory_is_told_with_what_to_do(error: Exception) -> None:
    assert "ran out of memory: lower global_batch" in explain(error, "w1")


def test_a_full_disk_is_told_as_it_is() -> None:
    assert explain(OSError("the model cannot be written: No space left"), "w1") == (
        "the model cannot be written: No space left"
    )
