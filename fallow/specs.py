"""From what a user wrote to a job spec that means the same on every machine.

Relative paths in a spec file are taken from the file's own folder; in a mapping or a spec object, from the current
folder. What the scheduler must know of a served model is read from the model folder here, before the submit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fallow.errors import InvalidSpec, UsageError
from fallow.model_folders import UnusableModel, read_model
from protocol import jobspec
from protocol.jobspec import JobSpec
from protocol.models import ModelConfig

SpecLike = JobSpec | Mapping[str, Any] | str | Path
"""A spec, a mapping with its fields, or the path of a YAML file."""

_CHECKED_CHARACTERS = 16_000_000  # the rest of a larger file is checked when training reads it

_NOT_PLAIN_TEXT = (".npy", ".gz", ".bz2", ".xz", ".zst", ".zip")

_PATHS = {
    "train": ("data", "output", "tokenizer", "eval_data", "start", "checkpoints"),
    "serve": ("model",),
    "task": ("output",),
}


def load_spec(given: SpecLike) -> JobSpec:
    """Read, check and complete a spec. Raises `InvalidSpec`, or `UsageError` when the file cannot be read."""
    if isinstance(given, JobSpec):
        return _complete(given, Path.cwd(), "the spec")
    if isinstance(given, Mapping):
        return _complete(_parsed(lambda: jobspec.parse(dict(given)), "the spec"), Path.cwd(), "the spec")
    path = Path(given).absolute()
    text = _read(path)
    return _complete(_parsed(lambda: jobspec.parse_yaml(text), str(path)), path.parent, str(path))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > jobspec.MAX_SPEC_BYTES:
            raise InvalidSpec(str(path), [f"spec: larger than {jobspec.MAX_SPEC_BYTES} bytes; move data into files"])
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSpec(str(path), [f"spec: not UTF-8 text at byte {error.start}"]) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Give the path of a YAML file.") from error


def _parsed(parse: Any, origin: str) -> JobSpec:
    try:
        spec: JobSpec = parse()
    except jobspec.InvalidSpec as error:
        raise InvalidSpec(origin, error.problems) from error
    return spec


def _complete(spec: JobSpec, folder: Path, origin: str) -> JobSpec:
    part = getattr(spec, spec.kind)
    changes: dict[str, Any] = {
        field: str(folder / value)
        for field in _PATHS[spec.kind]
        if (value := getattr(part, field)) is not None and value != "pydoc" and "://" not in value
    }
    if spec.kind == "train":
        _check_text(changes.get("data"), origin)
    if spec.kind == "serve" and part.shape is None:
        changes["shape"] = _shape(Path(changes["model"]), origin)
    return spec.model_copy(update={spec.kind: part.model_copy(update=changes)})


def _check_text(path: str | None, origin: str) -> None:
    """Refuse at once what training would refuse later, when the file can be seen from here."""
    if path is None or not Path(path).is_file() or Path(path).suffix in _NOT_PLAIN_TEXT:
        return
    try:
        with open(path, encoding="utf-8") as file:
            start = file.read(_CHECKED_CHARACTERS)
    except UnicodeDecodeError as error:
        raise InvalidSpec(origin, [f"train.data: {path} is not UTF-8 text ({error.reason})"]) from error
    except OSError as error:
        raise InvalidSpec(origin, [f"train.data: {path} cannot be read: {error.strerror}"]) from error
    if not start.strip():
        raise InvalidSpec(origin, [f"train.data: {path} is empty: there is nothing to train on"])


def _shape(folder: Path, origin: str) -> ModelConfig:
    """The architecture in the model's folder."""
    try:
        return read_model(folder)
    except UnusableModel as error:
        raise InvalidSpec(origin, [f"serve.model: {error}"]) from error
