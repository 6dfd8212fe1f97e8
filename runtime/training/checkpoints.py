"""Checkpoints in a folder or at any fsspec URL: one file a worker with a note of its checksum, and a manifest at last.

A checkpoint is there once its manifest is: nothing is renamed, which object stores cannot do. Any width can resume from
one: a file holds whole items, `dense` or `layer.expert`, each a (3, P) float32 buffer of value and moments, in the
safetensors format. Needs no torch to find the newest sound one, so a controller can do that.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import fsspec.implementations.local

from protocol.jobspec import TrainPart
from runtime.training.generation import DENSE, Item

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
PIECE_BYTES = 1 << 24
"""What is written, read and hashed at once."""
_NAME = re.compile(r"step-(\d{9})-(\d{6})$")


@dataclass(frozen=True, slots=True)
class Found:
    """A sound checkpoint; `path` is a folder or URL."""

    path: str
    step: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which finished checkpoints stay: the newest `count`, and those that are younger than `age_s`."""

    count: int = 2
    age_s: float = 0.0


def root_of(part: TrainPart, folder: Path) -> str:
    """Where a job's checkpoints lie; `folder` is the job's own."""
    return part.checkpoints or str(folder / "checkpoints")


def keeping_of(part: TrainPart) -> Keeping:
    """Which of them stay."""
    return Keeping(part.keep_checkpoints, part.keep_checkpoint_hours * 3600)


def item_name(item: Item) -> str:
    """An item's name in a file."""
    return item if item == DENSE else f"{item[0]}.{item[1]}"


def folder_of(root: str, step: int, generation: int) -> str:
    """Where a checkpoint lies: a generation's own, so that one broken off is never mixed with the next."""
    return f"{root.rstrip('/')}/step-{step:09d}-{generation:06d}"


# --- writing ---------------------------------------------------------------------------------------------------


def write_shard(folder: str, rank: int, buffers: Mapping[Item, Tensor]) -> None:
    """Write one worker's items and a note of their checksum. Raises what the file system raises: OSError mostly."""
    fs, path = _at(folder)
    fs.makedirs(path, exist_ok=True)
    name, digest, size = f"shard-{rank:05d}.safetensors", hashlib.sha256(), 0
    with _writing(fs, f"{path}/{name}") as file:
        for piece in _safetensors({item_name(item): buffer for item, buffer in buffers.items()}):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    names = sorted(item_name(item) for item in buffers)
    note = {"file": name, "bytes": size, "sha256": digest.hexdigest(), "items": names}
    _write_json(fs, f"{path}/shard-{rank:05d}.json", note)


def commit(folder: str, step: int, skipped: int, width: int, now_s: float | None = None) -> None:
    """All of `width` shards are written: the checkpoint is there. Raises as `write_shard`."""
    fs, path = _at(folder)
    notes = [json.loads(fs.cat_file(f"{path}/shard-{rank:05d}.json")) for rank in range(width)]
    written_s = time.time() if now_s is None else now_s
    _write_json(fs, f"{path}/{MANIFEST}", {"step": step, "skipped": skipped, "written_s": written_s, "shards": notes})


def prune(folder: str, keeping: Keeping, now_s: float | None = None) -> None:
    """After the commit of `folder`, delete what is not to stay of it and of earlier ones, unfinished ones too."""
    root, newest = folder.rsplit("/", 1)
    fs, path = _at(root)
    now_s = time.time() if now_s is None else now_s
    earlier = [name for name in _names(fs, path) if name <= newest]
    finished = [name for name in earlier if fs.exists(f"{path}/{name}/{MANIFEST}")]
    kept = {*finished[: keeping.count], *(n for n in finished if now_s - _written_s(fs, f"{path}/{n}") < keeping.age_s)}
    _remove(fs, [f"{path}/{name}" for name in earlier if name not in kept])


def discard_unfinished(root: str) -> None:
    """Delete checkpoints that were begun and are not whole; nobody may be writing one."""
    fs, path = _at(root)
    _remove(fs, [f"{path}/{n}" for n in _names(fs, path) if not fs.exists(f"{path}/{n}/{MANIFEST}")])


def discard(folder: str) -> None:
    """Delete one."""
    fs, path = _at(folder)
    _remove(fs, [path])


def _remove(fs: Any, paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(Exception):  # what cannot be deleted now is tried again after the next one
            fs.rm(path, recursive=True)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of a safetensors file (huggingface.co/docs/safetensors), without a copy of them all."""
    header, start = {}, 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        data = memoryview(tensor.detach().float().cpu().contiguous().numpy()).cast("B")
        for at in range(0, len(data), PIECE_BYTES):
            yield data[at : at + PIECE_BYTES]


@contextlib.contextmanager
def _writing(fs: Any, path: str) -> Iterator[Any]:
    with fs.open(path, "wb") as file:
        yield file
        file.flush()
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # a file on no disk of ours
            os.fsync(file.fileno())


def _write_json(fs: Any, path: str, content: object) -> None:
    with _writing(fs, path) as file:
        file.write(json.dumps(content, indent=1).encode())


# --- reading ---------------------------------------------------------------------------------------------------


def newest_sound(root: str) -> tuple[Found | None, list[str]]:
    """The newest checkpoint whose every byte is as written, and what is wrong with newer ones.

    Raises as `write_shard` if the place itself cannot be read: that is no reason to begin again.
    """
    fs, path = _at(root)
    problems: list[str] = []
    for name in _names(fs, path):
        folder = f"{root.rstrip('/')}/{name}"
        try:
            manifest = _manifest(fs, f"{path}/{name}")
            for shard in manifest["shards"]:
                _check(fs, f"{path}/{name}/{shard['file']}", shard)
            return Found(folder, int(manifest["step"]), int(manifest["skipped"])), problems
        except (OSError, ValueError, KeyError, TypeError) as error:
            if _is_out_of_reach(fs, error):
                raise
            problems.append(f"checkpoint {folder} is damaged and was passed over: {_why(error)}")
    return None, problems


def read_position(folder: str) -> tuple[int, int]:
    """Steps taken and skipped."""
    manifest = _manifest(*_at(folder))
    return int(manifest["step"]), int(manifest["skipped"])


def read_items(folder: str, items: Iterable[Item]) -> dict[Item, Tensor]:
    """The named items of a checkpoint. Raises ValueError naming one that is missing."""
    fs, path = _at(folder)
    where = {name: shard["file"] for shard in _manifest(fs, path)["shards"] for name in shard["items"]}
    headers: dict[str, tuple[int, dict[str, Any]]] = {}
    found: dict[Item, Tensor] = {}
    for item in items:
        name = item_name(item)
        if name not in where:
            raise ValueError(f"{folder}: holds no state of {name}: was it written for another model?")
        file = f"{path}/{where[name]}"
        if file not in headers:
            headers[file] = _header(fs, file)
        found[item] = _tensor(fs, file, *headers[file], name)
    return found


def _header(fs: Any, file: str) -> tuple[int, dict[str, Any]]:
    """Where the data of a safetensors file begins, and what is in it."""
    size = int.from_bytes(fs.cat_file(file, 0, 8), "little")
    return 8 + size, json.loads(fs.cat_file(file, 8, 8 + size))


def _tensor(fs: Any, file: str, data: int, header: dict[str, Any], name: str) -> Tensor:
    import torch

    start, end = header[name]["data_offsets"]
    raw = bytearray(fs.cat_file(file, data + start, data + end))
    return torch.frombuffer(raw, dtype=torch.float32).view(header[name]["shape"])


def _check(fs: Any, path: str, shard: dict[str, Any]) -> None:
    name, size, digest = shard["file"], fs.size(path), hashlib.sha256()
    if size != shard["bytes"]:
        raise ValueError(f"{name} has {size} bytes instead of {shard['bytes']}")
    with fs.open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    if digest.hexdigest() != shard["sha256"]:
        raise ValueError(f"{name} has another checksum than when it was written")


def _manifest(fs: Any, path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(fs.cat_file(f"{path}/{MANIFEST}"))
    return content


def _written_s(fs: Any, path: str) -> float:
    try:
        return float(_manifest(fs, path)["written_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _names(fs: Any, root: str) -> list[str]:
    """Of all checkpoints, newest first, finished or not."""
    fs.invalidate_cache()  # other processes write there
    try:
        entries = fs.ls(root, detail=False)
    except FileNotFoundError:
        return []
    names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
    return sorted((name for name in names if _NAME.match(name)), reverse=True)


def _is_out_of_reach(fs: Any, error: Exception) -> bool:
    """Whether a file may be sound where it lies: a network failed, and not the disk that has it."""
    is_local = isinstance(fs, fsspec.implementations.local.LocalFileSystem)
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and not is_local


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(str(error.filename or error)).name}: No such file"
    return str(error)


def _at(url: str) -> tuple[Any, str]:
    fs, path = fsspec.core.url_to_fs(url)
    return fs, path.rstrip("/")
