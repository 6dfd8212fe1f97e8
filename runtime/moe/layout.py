"""How a family of models is described in config.json and laid out in files. Needs no torch: clients check with it.

E experts of a layer, D hidden size, F expert size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from protocol.models import ModelConfig


class DamagedCheckpoint(ValueError):
    """A folder that cannot be read; the message names the file, field or tensor."""


_ABSENT = object()


class ConfigJson:
    """A model's config.json, field by field; null counts as absent. Wrong fields raise `DamagedCheckpoint`."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    @staticmethod
    def read(path: Path) -> ConfigJson:
        """Raises `DamagedCheckpoint` if it cannot be read or is no JSON object."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DamagedCheckpoint(f"{path}: cannot be read ({error.strerror}); give the folder of a model") from error
        except ValueError as error:
            raise DamagedCheckpoint(f"{path}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise DamagedCheckpoint(f"{path}: not a JSON object")
        return ConfigJson(path, content)

    def get(self, name: str, default: Any = None) -> Any:
        """A field as it is."""
        value = self.content.get(name)
        return default if value is None else value

    def whole(self, *names: str, default: Any = _ABSENT) -> Any:
        """A whole number, under the first of `names` that is there."""
        return self._number(names, (int,), "a whole number", default)

    def number(self, *names: str, default: Any = _ABSENT) -> Any:
        """A number, as a float."""
        value = self._number(names, (int, float), "a number", default)
        return value if value is default else float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, f"is {value!r}, expected true or false")
        return value

    def need(self, name: str, *supported: Any) -> None:
        """Refuse a field that is there with any other value than those that Fallow's models have."""
        if self.get(name, supported[0]) not in supported:
            what = " or ".join(json.dumps(value) for value in supported)
            raise self.wrong(name, f"is {json.dumps(self.get(name))}; Fallow runs this architecture only with {what}")

    def wrong(self, name: str, problem: str) -> DamagedCheckpoint:
        """The error for a field."""
        return DamagedCheckpoint(f"{self.path}: {name} {problem}")

    def _number(self, names: tuple[str, ...], types: tuple[type, ...], what: str, default: Any) -> Any:
        for name in names:
            value = self.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, types):
                raise self.wrong(name, f"is {value!r}, expected {what}")
            return value
        if default is _ABSENT:
            raise self.wrong(names[0], "is missing")
        return default


@dataclass(frozen=True)
class Piece:
    """Part of an expert: a tensor of the file, or one row of a tensor that holds all experts of a layer."""

    name: str
    shape: tuple[int, ...]
    row: int | None = None


@dataclass(frozen=True)
class SeparateExperts:
    """A tensor for each expert and matrix: gate and value (or both stacked), and the way back."""

    template: str = "model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
    parts: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    arrangement = "rows"

    def pieces(self, config: ModelConfig, layer: int, expert: int) -> list[Piece]:
        """In order; all but the last are stacked."""
        size, hidden = config.expert_size, config.hidden_size
        first = (size, hidden) if len(self.parts) == 3 else (2 * size, hidden)
        shapes = [first] * (len(self.parts) - 1) + [(hidden, size)]
        names = [self.template.format(layer=layer, expert=expert, part=part) for part in self.parts]
        return [Piece(name, shape) for name, shape in zip(names, shapes, strict=True)]


@dataclass(frozen=True)
class FusedExperts:
    """All experts of a layer in one tensor, as `transformers` 5 holds them: gate over value."""

    template: str = "model.layers.{layer}.mlp.experts.{part}"
    arrangement = "rows"

    def pieces(self, config: ModelConfig, layer: int, expert: int) -> list[Piece]:
        """`gate_up_proj` (E, 2 F, D) and `down_proj` (E, D, F)."""
        size, hidden, count = config.expert_size, config.hidden_size, config.experts
        shapes = {"gate_up_proj": (count, 2 * size, hidden), "down_proj": (count, hidden, size)}
        return [Piece(self.template.format(layer=layer, part=part), shape, expert) for part, shape in shapes.items()]


ExpertLayout = Any
"""A class with `arrangement` (how `runtime.moe.arrangements` turns its tensors into an expert) and `pieces`."""


@dataclass(frozen=True)
class Family:
    """One architecture. A new one is one file in `runtime.moe.families` with a `FAMILY` of this type.

    `renames` are (ours, theirs) parts of tensor names; `ignored` matches tensors that a folder may have and that
    nobody needs.
    """

    kind: str  # config.json's model_type
    architecture: str
    config: Callable[[ConfigJson], dict[str, Any]]  # the fields of ModelConfig
    renames: tuple[tuple[str, str], ...] = ()
    experts: tuple[ExpertLayout, ...] = (SeparateExperts(), FusedExperts())
    ignored: str = r".*\.rotary_emb\.inv_freq"
    speculates: bool = False  # a folder may have one more layer, for guessing tokens ahead

    def read(self, raw: ConfigJson) -> ModelConfig:
        """The model that a config.json describes. Raises `DamagedCheckpoint`."""
        try:
            return ModelConfig(**self.config(raw))
        except DamagedCheckpoint:
            raise
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise DamagedCheckpoint(f"{raw.path}: {field or 'sizes'}: {problem['msg']}") from error
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DamagedCheckpoint(f"{raw.path}: not a description of a {self.kind} model: {error!r}") from error

    def theirs(self, name: str) -> str:
        """The file's name of one of our dense parameters."""
        for ours, other in self.renames:
            name = name.replace(ours, other)
        return name

    def ignores(self, name: str, config: ModelConfig) -> bool:
        """Whether a tensor may be there without being read: extra layers for speculation, tables, a tied head."""
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if name == "lm_head.weight":
            return config.tie_embeddings
        is_extra = self.speculates and layer is not None and int(layer[1]) == config.layers
        return is_extra or bool(re.fullmatch(self.ignored, name))
