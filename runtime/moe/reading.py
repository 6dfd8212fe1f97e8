"""Reading Hugging Face folders: files are mapped into memory, and only the tensors that are named are taken.

What is in a folder is said by `runtime.moe.description`; the families' files say where each tensor lies.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from protocol.models import ModelConfig
from runtime.moe import names
from runtime.moe.arrangements import BLOCK, arrange, eight_bit
from runtime.moe.description import SCALES, describe
from runtime.moe.experts import AnyExpert, ExpertId, LocalExperts
from runtime.moe.headers import INDEX, weight_map
from runtime.moe.layout import DamagedCheckpoint, Piece
from runtime.moe.model import MoeModel, all_experts


def read_config(folder: Path) -> ModelConfig:
    """The architecture of a folder. Raises `DamagedCheckpoint`."""
    return describe(folder).config


class ModelFolder:
    """Reads named tensors of a folder, memory-mapped. Close it, or use it as a context manager.

    `dtype`: what dense parameters and experts are given in. Numbers that are stored so are not copied.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.folder = folder
        self.dtype = dtype
        self._described = describe(folder)
        self.config = self._described.config
        self._weight_map = weight_map(folder)
        self._layout = self._described.expert_layout(self._weight_map)
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> ModelFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files."""
        self._stack.close()
        self._files.clear()

    def tensor(self, name: str, shape: tuple[int, ...], row: int | None = None) -> Tensor:
        """One tensor as it is stored, or one row of it: the rest is not read.

        Raises `DamagedCheckpoint` naming it if it is missing, truncated or has another shape.
        """
        if name not in self._weight_map:
            raise DamagedCheckpoint(f"{self.folder}: tensor {name} is missing from {INDEX}")
        path = self.folder / self._weight_map[name]
        try:
            stored = self._open(path).get_slice(name)
            found = tuple(stored.get_shape())
            if found != shape:
                raise DamagedCheckpoint(f"{path}: tensor {name} has shape {found}, expected {shape}")
            return self._open(path).get_tensor(name) if row is None else stored[row]
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpoint(f"{path}: tensor {name} cannot be read, the file is damaged: {error}") from error

    @torch.no_grad()
    def load_dense(self, model: MoeModel) -> None:
        """Fill the dense parameters of a model that was built from `self.config`."""
        config, ours = model.config, dict(model.named_parameters())
        theirs = {name: self._dense(name, tuple(parameter.shape)) for name, parameter in ours.items()}
        if self._described.is_interleaved:
            for query, key in names.query_key_pairs(config):
                theirs[query], theirs[key] = names.separate(config, theirs[query], theirs[key])
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])

    def expert(self, key: ExpertId) -> AnyExpert:
        """One expert's matrices."""
        pieces = self._layout.pieces(self.config, key[0] + self.config.dense_layers, key[1])
        read = arrange(self._layout.arrangement, [self._piece(piece) for piece in pieces])
        return type(read)(*(tensor.to(self.dtype) for tensor in read))

    def experts(self, keys: list[ExpertId] | None = None) -> LocalExperts:
        """The named experts, or all of them."""
        wanted = all_experts(self.config) if keys is None else keys
        return LocalExperts({key: self.expert(key) for key in wanted}, self.config.experts)

    def dense_model(self) -> MoeModel:
        """A new model with its dense parameters loaded, for inference."""
        with _Unfilled():
            model = MoeModel(self.config)
        model = model.to(self.dtype).eval().requires_grad_(False)
        self.load_dense(model)
        return model

    def _dense(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._whole(self._described.dense_name(name, self._weight_map), shape)

    def _piece(self, piece: Piece) -> Tensor:
        if piece.row is None:
            return self._whole(piece.name, piece.shape)
        return self.tensor(piece.name, piece.shape, piece.row)

    def _whole(self, name: str, shape: tuple[int, ...]) -> Tensor:
        stored = self.tensor(name, shape)
        if name + SCALES not in self._weight_map:
            return stored
        return eight_bit(stored, self.tensor(name + SCALES, tuple(-(-size // BLOCK) for size in shape)))

    def _open(self, path: Path) -> Any:
        if path.name not in self._files:
            self._files[path.name] = self._stack.enter_context(safe_open(path, framework="pt"))
        return self._files[path.name]


class _Unfilled(TorchFunctionMode):
    """Within it torch's modules leave their parameters' memory as it is: to draw what is then read over takes longer
    than to read it."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return function(*args, **given)
