"""A worker alone in this process: what it says when it cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime.training.orders import Orders
from runtime.training.pulse import Pulse
from runtime.training.worker import TrainWorker, explain
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


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory: 8 TB")]
)
def test_a_lack_of_memory_is_told_with_what_to_do(error: Exception) -> None:
    assert "ran out of memory: lower global_batch" in explain(error, "w1")


def test_a_full_disk_is_told_as_it_is() -> None:
    assert explain(OSError("the model cannot be written: No space left"), "w1") == (
        "the model cannot be written: No space left"
    )
