"""Checkpoints on disk: damage is found and named, the one before is used, any width reads what another wrote."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from runtime.training import checkpoint_writer
from runtime.training.checkpoint_writer import CheckpointWriter, Writing
from runtime.training.checkpoints import commit, folder_of, newest_sound, partial_of, read_items, write_shard
from runtime.training.generation import DENSE, form
from runtime.training.state import Copy, Position
from tests.training.undisturbed import slots, tiny_spec

KEYS = [(0, 0), (0, 1), (1, 0)]


def buffers(value: float) -> dict:
    return {DENSE: torch.full((3, 4), value)} | {key: torch.full((3, 2), value + i) for i, key in enumerate(KEYS)}


def written(root: Path, step: int, width: int = 2) -> Path:
    everything = list(buffers(step).items())
    partial = partial_of(root, step, generation=1)
    for rank in range(width):
        write_shard(partial, rank, dict(everything[rank::width]))
    return commit(root, partial, step, skipped=1, width=width)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_items_read_back_whoever_wrote_them(tmp_path: Path, width: int) -> None:
    path = written(tmp_path, 5, width)
    found, problems = newest_sound(tmp_path)
    assert (found.path, found.step, found.skipped, problems) == (path, 5, 1, [])
    read = read_items(path, [DENSE, (1, 0)])
    assert torch.equal(read[DENSE], buffers(5)[DENSE])
    assert torch.equal(read[1, 0], buffers(5)[1, 0])
    with pytest.raises(ValueError, match=r"holds no state of 7\.7"):
        read_items(path, [(7, 7)])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing shard", "no manifest", "bad manifest"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    good, bad = written(tmp_path, 5), written(tmp_path, 9)
    shard, manifest = bad / "shard-00001.safetensors", bad / "manifest.json"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-3])
    elif damage == "flipped":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "missing shard":
        shard.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    found, problems = newest_sound(tmp_path)
    assert found.path == good
    assert len(problems) == 1
    assert str(bad) in problems[0]
    if "manifest" not in damage:
        assert "shard-00001" in problems[0]


def test_nothing_sound_is_said_so(tmp_path: Path) -> None:
    assert newest_sound(tmp_path / "none") == (None, [])


def test_only_the_last_few_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    write_shard(partial_of(tmp_path, 3, 1), 0, buffers(3))
    for step in (4, 8, 12):
        written(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder_of(tmp_path, s).name for s in (8, 12)]


def test_after_a_rollback_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    written(tmp_path, 8, width=2)
    path = written(tmp_path, 8, width=1)
    assert newest_sound(tmp_path)[0].path == path
    assert not (path / "shard-00001.safetensors").exists()


def writers(root: Path) -> tuple[list[CheckpointWriter], list, object]:
    generation = form(3, slots(tiny_spec(), ["a", "b"]))
    told: list[tuple[str, dict]] = []
    done = threading.Event()

    def tell(kind: str, **facts: object) -> None:
        told.append((kind, facts))
        done.set()

    made = [CheckpointWriter(root, tell) for _ in "ab"]
    items = {DENSE: torch.ones(3, 4)} | {k: torch.ones(3, 2) for m in generation.members for k in m.slot.experts}
    for writer, worker in zip(made, "ab", strict=True):
        writer.start(Copy(Position(6, 0), 3, items), generation, worker)
        writer.wait()
    return made, told, done


def test_rank_0_finishes_when_all_have_written(tmp_path: Path) -> None:
    made, told, _ = writers(tmp_path)
    states = tuple(int(w.writing) for w in made)
    assert states == (Writing.WRITTEN, Writing.WRITTEN)
    assert [w.heard(states) for w in made] == [False, False]
    made[0].wait()
    assert told == [("checkpoint", {"path": str(folder_of(tmp_path, 6)), "step": 6})]
    assert newest_sound(tmp_path)[0].step == 6


def test_a_full_disk_is_reported_and_nothing_else_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "write_shard", full)
    made, told, _ = writers(tmp_path)
    states = tuple(int(w.writing) for w in made)
    assert [w.heard(states) for w in made] == [False, False]
    made[0].wait()
    assert [w.writing for w in made] == [Writing.IDLE, Writing.IDLE]
    assert {kind for kind, _ in told} == {"warning"}
    assert "No space left on device" in told[0][1]["text"]
    assert newest_sound(tmp_path)[0].step == 2


def test_one_that_a_switch_broke_off_is_due_again(tmp_path: Path) -> None:
    made, _, _ = writers(tmp_path)
    for writer in made:
        writer.interrupt()
    states = tuple(int(w.writing) for w in made)
    assert states == (Writing.DUE, Writing.DUE)
    assert CheckpointWriter(tmp_path, lambda *_, **__: None).heard((*states, Writing.IDLE))
