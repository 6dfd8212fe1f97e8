"""What a folder's safetensors files hold, read from their headers: names, shapes, sizes. Needs no torch.

A file is eight bytes (the header's length), the header in JSON, and the tensors; so a truncated file shows at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from runtime.moe.layout import DamagedCheckpoint

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. `kind` is the format's name of its number type, e.g. BF16."""

    file: str
    shape: tuple[int, ...]
    kind: str
    bytes: int


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, by the index or the single file. Raises `DamagedCheckpoint`."""
    index, single = folder / INDEX, folder / SINGLE
    if not index.exists() and single.exists():
        return dict.fromkeys(read_header(single), SINGLE)
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{index}: missing or not a safetensors index, and there is no {SINGLE}") from error
    outside = next((file for file in names.values() if Path(file).name != file), None)
    if outside is not None:
        raise DamagedCheckpoint(f"{index}: names {outside}, which is not in the folder itself")
    return names


def survey(folder: Path) -> dict[str, Stored]:
    """Every tensor that the folder's files hold. Raises `DamagedCheckpoint` naming the file or tensor."""
    names = weight_map(folder)
    held = {name: stored for file in sorted(set(names.values())) for name, stored in read_header(folder / file).items()}
    for name, file in names.items():
        if name not in held or held[name].file != file:
            raise DamagedCheckpoint(f"{folder / file}: tensor {name} is missing; {INDEX} says it is here")
    return held


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file. Raises `DamagedCheckpoint` if it is no whole safetensors file."""
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise DamagedCheckpoint(f"{path}: not a safetensors file, or cut off in its header ({size} bytes)")
            header = json.loads(file.read(length))
        return _tensors(path, header, size - 8 - length)
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"{path}: not a safetensors file: {error!r}") from error


def _tensors(path: Path, header: dict[str, dict[str, object]], data_bytes: int) -> dict[str, Stored]:
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]  # type: ignore[misc]
        if end > data_bytes:
            raise DamagedCheckpoint(
                f"{path}: cut off: tensor {name} ends at byte {end} of the data, the file holds {data_bytes}"
            )
        tensors[name] = Stored(path.name, tuple(entry["shape"]), str(entry["dtype"]), end - start)  # type: ignore[arg-type]
    return tensors
