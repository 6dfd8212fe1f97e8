"""Checkpoints on disk: damage is found and named, the one before is used, any width reads what another wrote."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load

from runtime.training import checkpoint_writer, checkpoints
from runtime.training.checkpoint_writer import CheckpointWriter, Writing
from runtime.training.checkpoints import (
    Keeping,
    commit,
    discard_unfinished,
    folder_of,
    newest_sound,
    prune,
    read_items,
    read_position,
    write_shard,
)
from runtime.training.generation import DENSE, form
from runtime.training.state import Copy, Position
from tests.training.undisturbed import slots, tiny_spec
from tests.training.web_hdfs import serving

KEYS = [(0, 0), (0, 1), (1, 0)]
LAST = Keeping(2)


@pytest.fixture(params=["folder", "file URL", "memory", "WebHDFS"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place for checkpoints, of each kind."""
    if request.param == "WebHDFS":
        with serving(tmp_path) as url:
            yield f"{url}job"
        return
    urls = {"folder": str(tmp_path / "job"), "file URL": (tmp_path / "job").as_uri()}
    yield urls.get(request.param, f"memory://{uuid.uuid4()}/job")


def buffers(value: float) -> dict:
    return {DENSE: torch.full((3, 4), value)} | {key: torch.full((3, 2), value + i) for i, key in enumerate(KEYS)}


def written(root: str, step: int, width: int = 2, generation: int = 1, now_s: float = 1e9) -> str:
    everything = list(buffers(step).items())
    folder = folder_of(root, step, generation)
    for rank in range(width):
        write_shard(folder, rank, dict(everything[rank::width]))
    commit(folder, step, skipped=1, width=width, now_s=now_s)
    return folder


def at(url: str) -> tuple[Any, str]:
    return fsspec.core.url_to_fs(url)


def names(root: str) -> list[str]:
    fs, path = at(root)
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


@pytest.mark.parametrize("width", [1, 3])
def test_items_read_back_whoever_wrote_them(root: str, width: int) -> None:
    folder = written(root, 5, width)
    found, problems = newest_sound(root)
    assert (found.path, found.step, found.skipped, problems) == (folder, 5, 1, [])
    assert read_position(folder) == (5, 1)
    read = read_items(folder, [DENSE, (1, 0)])
    assert torch.equal(read[DENSE], buffers(5)[DENSE])
    assert torch.equal(read[1, 0], buffers(5)[1, 0])
    with pytest.raises(ValueError, match=r"holds no state of 7\.7"):
        read_items(folder, [(7, 7)])


def test_its_files_are_safetensors(root: str) -> None:
    fs, path = at(written(root, 5, width=1))
    loaded = load(fs.cat_file(f"{path}/shard-00000.safetensors"))
    assert sorted(loaded) == ["0.0", "0.1", "1.0", "dense"]
    assert torch.equal(loaded["0.1"], buffers(5)[0, 1])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing shard", "no manifest", "bad manifest"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(root: str, damage: str) -> None:
    good, bad = written(root, 5), written(root, 9)
    fs, path = at(bad)
    shard, manifest = f"{path}/shard-00001.safetensors", f"{path}/manifest.json"
    content = fs.cat_file(shard)
    if damage == "truncated":
        fs.pipe_file(shard, content[:-3])
    elif damage == "flipped":
        fs.pipe_file(shard, content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing shard":
        fs.rm(shard)
    elif damage == "no manifest":
        fs.rm(manifest)
    else:
        fs.pipe_file(manifest, b"{")
    found, problems = newest_sound(root)
    assert found.path == good
    assert len(problems) == 1
    assert bad in problems[0]
    if "manifest" not in damage:
        assert "shard-00001" in problems[0]


def test_nothing_sound_is_said_so(root: str) -> None:
    assert newest_sound(root) == (None, [])


def test_a_place_that_cannot_be_reached_is_not_an_empty_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        newest_sound(f"webhdfs://127.0.0.1:{port}/job")


def test_a_network_that_fails_while_one_is_read_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as url:
        written(url, 5)
        monkeypatch.setattr(checkpoints, "_check", lambda *_: (_ for _ in ()).throw(TimeoutError("no answer")))
        with pytest.raises(TimeoutError):
            newest_sound(url)
        found, problems = newest_sound(str(tmp_path))  # of a disk it is a fault
    assert found is None
    assert "no answer" in problems[0]


def test_the_newest_few_are_kept_and_leftovers_go(root: str) -> None:
    write_shard(folder_of(root, 3, 1), 0, buffers(3))
    for step in (4, 8, 12):
        prune(written(root, step), LAST)
    assert names(root) == ["step-000000008-000001", "step-000000012-000001"]
    write_shard(folder_of(root, 16, 1), 0, buffers(3))
    discard_unfinished(root)
    assert names(root) == ["step-000000008-000001", "step-000000012-000001"]


def test_young_ones_are_kept_beyond_the_newest_few(root: str) -> None:
    for hour, step in enumerate((4, 8, 12, 16, 20)):
        prune(written(root, step, now_s=3600.0 * hour), Keeping(1, age_s=2.5 * 3600), now_s=3600.0 * hour)
    assert [name[5:14] for name in names(root)] == ["000000012", "000000016", "000000020"]
    # years later the newest one stays, however old it is
    prune(written(root, 24, now_s=1e9), Keeping(1, age_s=1.0), now_s=2e9)
    assert [name[5:14] for name in names(root)] == ["000000024"]


def test_after_a_rollback_the_later_generations_checkpoint_of_a_step_is_the_one(root: str) -> None:
    written(root, 8, width=2)
    folder = written(root, 8, width=1, generation=2)
    assert newest_sound(root)[0].path == folder


def writers(root: str) -> tuple[list[CheckpointWriter], list, object]:
    generation = form(3, slots(tiny_spec(), ["a", "b"]))
    told: list[tuple[str, dict]] = []
    done = threading.Event()

    def tell(kind: str, **facts: object) -> None:
        told.append((kind, facts))
        done.set()

    made = [CheckpointWriter(root, LAST, tell) for _ in "ab"]
    items = {DENSE: torch.ones(3, 4)} | {k: torch.ones(3, 2) for m in generation.members for k in m.slot.experts}
    for writer, worker in zip(made, "ab", strict=True):
        writer.start(Copy(Position(6, 0), 3, items), generation, worker)
        writer.wait()
    return made, told, done


def test_rank_0_finishes_when_all_have_written(root: str) -> None:
    made, told, _ = writers(root)
    states = tuple(int(w.writing) for w in made)
    assert states == (Writing.WRITTEN, Writing.WRITTEN)
    assert [w.heard(states) for w in made] == [False, False]
    made[0].wait()
    assert told == [("checkpoint", {"path": folder_of(root, 6, 3), "step": 6})]
    assert newest_sound(root)[0].step == 6


def test_a_full_disk_is_reported_and_nothing_else_happens(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written(root, 2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_writer, "write_shard", full)
    made, told, _ = writers(root)
    states = tuple(int(w.writing) for w in made)
    assert [w.heard(states) for w in made] == [False, False]
    made[0].wait()
    assert [w.writing for w in made] == [Writing.IDLE, Writing.IDLE]
    assert {kind for kind, _ in told} == {"warning"}
    assert "No space left on device" in told[0][1]["text"]
    assert newest_sound(root)[0].step == 2


def test_one_that_a_switch_broke_off_is_due_again(root: str) -> None:
    made, _, _ = writers(root)
    for writer in made:
        writer.interrupt()
    states = tuple(int(w.writing) for w in made)
    assert states == (Writing.DUE, Writing.DUE)
    assert CheckpointWriter(root, LAST, lambda *_, **__: None).heard((*states, Writing.IDLE))
