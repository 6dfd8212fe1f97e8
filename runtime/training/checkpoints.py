"""Checkpoints on disk: one file a worker, a manifest with checksums, written under another name and renamed.

Any width can resume from one: a file holds whole items, `dense` or `layer.expert`, each a (3, P) buffer of value and
moments. Needs no torch to find the newest sound one, so a controller can do that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.training.generation import DENSE, Item

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
"""Finished checkpoints that stay on disk."""
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Found:
    """A sound checkpoint."""

    path: Path
    step: int
    skipped: int


def item_name(item: Item) -> str:
    """An item's name in a file."""
    return item if item == DENSE else f"{item[0]}.{item[1]}"


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:09d}"


def partial_of(root: Path, step: int, generation: int) -> Path:
    """Where it grows; a generation's own, so that one broken off is never mixed with the next."""
    return root / f".step-{step:09d}.{generation}.partial"


# --- writing ---------------------------------------------------------------------------------------------------


def write_shard(partial: Path, rank: int, buffers: Mapping[Item, Tensor]) -> None:
    """Write one worker's items and a note of their checksum. Raises OSError, such as a full disk's."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial.mkdir(parents=True, exist_ok=True)
    path = partial / f"shard-{rank:05d}.safetensors"
    tensors = {item_name(item): buffer.detach().cpu().contiguous() for item, buffer in buffers.items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    note = {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path), "items": sorted(tensors)}
    _write(partial / f"shard-{rank:05d}.json", json.dumps(note))


def commit(root: Path, partial: Path, step: int, skipped: int, width: int) -> Path:
    """All of `width` shards are written: give the checkpoint its name, and prune. Raises OSError."""
    notes = [json.loads((partial / f"shard-{rank:05d}.json").read_text()) for rank in range(width)]
    _write(partial / MANIFEST, json.dumps({"step": step, "skipped": skipped, "shards": notes}, indent=1))
    final = folder_of(root, step)
    if final.exists():  # of a time before a rollback
        shutil.rmtree(final)
    os.replace(partial, final)
    _prune(root, keep=final)
    return final


def discard_unfinished(root: Path) -> None:
    """Delete checkpoints that were begun and are not whole; nobody may be writing one."""
    for leftover in root.glob(".step-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def _prune(root: Path, keep: Path) -> None:
    discard_unfinished(root)
    finished = sorted(p for p in root.glob("step-*") if p.name <= keep.name)
    for old in finished[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading ---------------------------------------------------------------------------------------------------


def newest_sound(root: Path) -> tuple[Found | None, list[str]]:
    """The newest checkpoint whose every byte is as written, and what is wrong with newer ones."""
    problems: list[str] = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            for shard in manifest["shards"]:
                _check(folder / shard["file"], shard)
            return Found(folder, int(manifest["step"]), int(manifest["skipped"])), problems
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"checkpoint {folder} is damaged and was passed over: {_why(error)}")
    return None, problems


def _check(path: Path, shard: dict[str, object]) -> None:
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes instead of {shard['bytes']}")
    if _sha256(path) != shard["sha256"]:
        raise ValueError(f"{path.name} has another checksum than when it was written")


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{Path(error.filename or '').name}: {error.strerror}"
    return str(error)


def read_items(folder: Path, items: Iterable[Item]) -> dict[Item, Tensor]:
    """The named items of a checkpoint. Raises ValueError naming one that is missing."""
    from safetensors import safe_open

    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    where = {name: shard["file"] for shard in manifest["shards"] for name in shard["items"]}
    found: dict[Item, Tensor] = {}
    for item in items:
        name = item_name(item)
        if name not in where:
            raise ValueError(f"{folder}: holds no state of {name}: was it written for another model?")
        with safe_open(folder / where[name], framework="pt") as file:
            found[item] = file.get_tensor(name).clone()
    return found
