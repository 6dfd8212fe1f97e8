# ruff: noqa: N815 - tensors carry their dimensions in fields too
"""An expert call as bytes: the rows of one layer's tokens that one shard is to pass through its experts.

Dimensions: T rows sent, D hidden width, E experts asked, P (token, expert) pairs, L = P, or 0 where every row is one
pair's and they come in the pairs' order. The answer has one row per pair, unweighted and in the pairs' order, so that
the engine's sum does not depend on which shard an expert lies on.

    call:  layer u32 | T u32 | D u32 | P u32 | L u32 | E u32 | dtype u32 | expert_E u32 | count_E u32 | row_L u32 | x_TD
    reply: y_PD
"""

from __future__ import annotations

import struct
from array import array
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from runtime.serving.wire import WireError

CALL = struct.Struct("<7I")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.float16: np.float16}
"""What numpy takes them for: it has no bfloat16, but moves rows in a third of torch's time."""

MOST_VIEWS = 1000
"""So many shapes of calls are remembered; a shard is asked for few rows of few experts again and again."""

Body = bytearray | bytes | memoryview


class ExpertCall(NamedTuple):
    """The first `counts[0]` pairs go through `experts[0]`, and so on; experts ascend. `row_P[p]` is pair p's row of
    `x_TD`; without it row p is pair p's."""

    layer: int
    x_TD: torch.Tensor
    experts: list[int]
    counts: list[int]
    row_P: np.ndarray | None = None  # uint32

    @property
    def pairs(self) -> int:
        """P."""
        return sum(self.counts)

    def rows(self) -> torch.Tensor:
        """Each pair's token, (P, D)."""
        return self.x_TD if self.row_P is None else taken(self.x_TD, self.row_P)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A CPU tensor's memory for numpy; see `BITS`."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def taken(x_TD: torch.Tensor, row_P: np.ndarray) -> torch.Tensor:
    """`x_TD[row_P]`, for a tensor on the CPU. Raises `IndexError`."""
    return tensor_of(bits(x_TD).take(row_P, 0), x_TD.dtype)


def tensor_of(memory: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The tensor whose `bits` these are."""
    tensor = torch.from_numpy(memory)
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor


def raw(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it is contiguous on the CPU already."""
    try:
        return memoryview(bits(tensor)).cast("B")
    except (TypeError, RuntimeError):  # elsewhere, in pieces, empty, or with a gradient
        tensor = tensor.detach().cpu().contiguous()
        return memoryview(bits(tensor)).cast("B") if tensor.numel() else memoryview(b"")


def encode_call(call: ExpertCall) -> list[bytes | memoryview]:
    """The body's parts, in order."""
    rows, width = call.x_TD.shape
    listed = b"" if call.row_P is None else call.row_P.tobytes()
    dtype = DTYPES.index(call.x_TD.dtype)
    head = CALL.pack(call.layer, rows, width, call.pairs, len(listed) // 4, len(call.experts), dtype)
    groups = array("I", call.experts + call.counts)
    return [b"".join((head, groups, listed)), raw(call.x_TD)]


class Views:
    """Tensors over the memory that one connection's calls come in, each made once: that takes longer than to decode all
    the rest. Bodies begin where their memory begins."""

    def __init__(self) -> None:
        self._memory: object = None
        self._made: dict[tuple[torch.dtype, int, int, int], torch.Tensor] = {}

    def rows(self, body: Body, dtype: torch.dtype, rows: int, width: int, offset: int) -> torch.Tensor:
        """The (rows, width) numbers of a type that begin at an offset."""
        memory = body.obj if isinstance(body, memoryview) else body
        if memory is not self._memory or len(self._made) >= MOST_VIEWS:
            self._memory, self._made = memory, {}
        view = self._made.get((dtype, rows, width, offset))
        if view is None:
            view = tensor_of(np.ndarray((rows, width), BITS[dtype], body, offset), dtype)
            self._made[dtype, rows, width, offset] = view
        return view


def decode_call(body: Body, views: Views | None = None) -> ExpertCall:
    """The call in a body, whose rows it shares. Raises `WireError` where sizes or indices do not fit."""
    if len(body) < CALL.size:
        raise WireError("an expert call is cut short")
    layer, rows, width, pairs, listed, experts, dtype_code = CALL.unpack_from(body)
    if dtype_code >= len(DTYPES):
        raise WireError(f"an expert call has the unknown dtype {dtype_code}")
    dtype = DTYPES[dtype_code]
    rows_at = CALL.size + 8 * experts
    x_at = rows_at + 4 * listed
    fits = len(body) == x_at + rows * width * dtype.itemsize and pairs == (listed or rows)
    if not fits or not (rows and pairs and width and experts):
        raise WireError(f"an expert call of {rows}x{width} with {pairs} pairs does not fit its {len(body)} bytes")
    groups = memoryview(body)[CALL.size : rows_at].cast("B").cast("I").tolist()
    expert_E, count_E = groups[:experts], groups[experts:]
    if sum(count_E) != pairs or (experts > 1 and any(a >= b for a, b in pairwise(expert_E))):
        raise WireError("an expert call's experts do not ascend, or do not have all of its pairs")
    row_P = np.frombuffer(body, np.uint32, listed, rows_at) if listed else None
    if row_P is not None and row_P.max() >= rows:
        raise WireError("an expert call names a row that it did not send")
    x_TD = (views or Views()).rows(body, dtype, rows, width, x_at)
    return ExpertCall(layer, x_TD, expert_E, count_E, row_P)


def decode_reply(body: bytearray | bytes | memoryview, dtype: torch.dtype, pairs: int, width: int) -> torch.Tensor:
    """`y_PD` of a reply, which shares its bytes. Raises `WireError` if it has not as many as were asked for."""
    if len(body) != pairs * width * dtype.itemsize:
        raise WireError(f"a reply to {pairs} pairs of width {width} came back with {len(body)} bytes")
    return tensor_of(np.ndarray((pairs, width), BITS[dtype], body), dtype)
