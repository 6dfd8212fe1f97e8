"""What a model folder is, judged before anything is loaded: its architecture, and whether its files agree with it.

Needs no torch, so that a client or a site can refuse a folder before it takes a node.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from protocol.models import ModelConfig
from runtime.moe.families import family_of
from runtime.moe.headers import Stored, survey
from runtime.moe.layout import ConfigJson, DamagedCheckpoint, ExpertLayout, Family
from runtime.moe.shapes import dense_shapes

SCALES = "_scale_inv"
"""Follows the name of a matrix in 8-bit numbers: one factor for each block of it."""


@dataclass(frozen=True)
class Description:
    """A folder's architecture, and the names of its tensors."""

    folder: Path
    config: ModelConfig
    family: Family

    def dense_name(self, name: str, present: Container[str]) -> str:
        """The file's name of one of our dense parameters: the family's, or ours where the folder has that."""
        theirs = self.family.theirs(name)
        return theirs if theirs in present or name not in present else name

    def expert_layout(self, present: Container[str]) -> ExpertLayout:
        """How the experts lie in this folder; the family's usual way where there are none."""
        for layout in self.family.experts:
            if layout.pieces(self.config, self.config.dense_layers, 0)[0].name in present:
                return layout
        return self.family.experts[0]

    @cached_property
    def is_interleaved(self) -> bool:
        """Whether `q_proj` and `k_proj` each hold parts of both, as Yuan's code expects."""
        return self.config.localised_filtering and self.config.key_value_heads == self.config.heads


def describe(folder: Path) -> Description:
    """Read config.json. Raises `DamagedCheckpoint` for one that is wrong, or of an architecture unknown to Fallow."""
    raw = ConfigJson.read(folder / "config.json")
    family = family_of(raw)
    if "fallow" not in raw.content:
        return Description(folder, family.read(raw), family)
    try:
        return Description(folder, ModelConfig.model_validate(raw.content["fallow"]), family)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in ("fallow", *problem["loc"]))
        raise DamagedCheckpoint(f"{raw.path}: {field}: {problem['msg']}") from error


def examine(folder: Path) -> Description:
    """Describe a folder and compare every tensor's name and shape with what its config.json asks for.

    Raises `DamagedCheckpoint` naming the first that is missing, misshapen, cut off or not accounted for.
    """
    described, held = describe(folder), survey(folder)
    expected = _expected(described, held)
    for name, shape in expected.items():
        if name not in held:
            raise DamagedCheckpoint(f"{folder}: tensor {name} {shape} is missing, which config.json asks for")
        if held[name].shape != shape:
            raise DamagedCheckpoint(
                f"{folder / held[name].file}: tensor {name} has shape {held[name].shape}, config.json asks for {shape}"
            )
    for name in held:
        if name.removesuffix(SCALES) not in expected and not described.family.ignores(name, described.config):
            raise DamagedCheckpoint(
                f"{folder / held[name].file}: tensor {name} has no place in the model that config.json describes"
            )
    return described


def _expected(described: Description, held: dict[str, Stored]) -> dict[str, tuple[int, ...]]:
    config = described.config
    expected = {described.dense_name(name, held): shape for name, shape in dense_shapes(config).items()}
    layout = described.expert_layout(held)
    for layer in range(config.dense_layers, config.layers):
        for expert in range(config.experts):
            expected |= {piece.name: piece.shape for piece in layout.pieces(config, layer, expert)}
    return expected
