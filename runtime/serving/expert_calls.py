# ruff: noqa: N815 - tensors carry their dimensions in fields too
"""An expert call as bytes: the rows of one layer's tokens that one shard is to pass through its experts.

Dimensions: T tokens sent, D hidden width, E experts asked, P (token, expert) pairs. The answer has one row per pair,
unweighted and in the pairs' order, so that the engine's sum does not depend on which shard an expert lies on.

    call:  layer u32 | T u32 | D u32 | P u32 | E u32 | dtype u32 | expert_E u32 | count_E u32 | token_P u32 | x_TD
    reply: P u32 | D u32 | y_PD
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from runtime.serving.wire import WireError

CALL = struct.Struct("<6I")
REPLY = struct.Struct("<2I")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class ExpertCall:
    """The first `counts[0]` pairs go through `experts[0]`, and so on; experts ascend. `token_P[p]` is pair p's row of
    `x_TD`."""

    layer: int
    x_TD: torch.Tensor
    experts: list[int]
    counts: list[int]
    token_P: torch.Tensor  # int32

    def rows(self) -> torch.Tensor:
        """Each pair's token, (P, D)."""
        return self.x_TD.index_select(0, self.token_P)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A CPU tensor's memory for numpy, which has no bfloat16 but moves rows in a third of torch's time."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def raw(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it is contiguous on the CPU already."""
    flat = tensor.detach().cpu().contiguous()
    return memoryview(bits(flat)).cast("B") if flat.numel() else memoryview(b"")


def encode_call(call: ExpertCall) -> list[bytes | memoryview]:
    """The body's parts, in order."""
    tokens, width = call.x_TD.shape
    dtype = DTYPES.index(call.x_TD.dtype)
    head = CALL.pack(call.layer, tokens, width, len(call.token_P), len(call.experts), dtype)
    groups = array("I", call.experts + call.counts)
    return [b"".join((head, groups, raw(call.token_P))), raw(call.x_TD)]


def decode_call(body: bytearray | bytes | memoryview) -> ExpertCall:
    """The call in a body, whose rows it shares. Raises `WireError` where sizes or indices do not fit."""
    if len(body) < CALL.size:
        raise WireError("an expert call is cut short")
    layer, tokens, width, pairs, experts, dtype_code = CALL.unpack_from(body)
    if dtype_code >= len(DTYPES):
        raise WireError(f"an expert call has the unknown dtype {dtype_code}")
    dtype = DTYPES[dtype_code]
    tokens_at = CALL.size + 8 * experts
    x_at = tokens_at + 4 * pairs
    if len(body) != x_at + tokens * width * dtype.itemsize or not (tokens and pairs and width and experts):
        raise WireError(f"an expert call of {tokens}x{width} with {pairs} pairs does not fit its {len(body)} bytes")
    indices = memoryview(body)[CALL.size : x_at].cast("I").tolist()
    expert_E, count_E = indices[:experts], indices[experts : 2 * experts]
    if sum(count_E) != pairs or any(a >= b for a, b in pairwise(expert_E)):
        raise WireError("an expert call's experts do not ascend, or do not have all of its pairs")
    if max(indices[2 * experts :]) >= tokens:
        raise WireError("an expert call names a token that it did not send")
    x_TD = torch.frombuffer(body, dtype=dtype, count=tokens * width, offset=x_at).view(tokens, width)
    token_P = torch.frombuffer(body, dtype=torch.int32, count=pairs, offset=tokens_at)
    return ExpertCall(layer, x_TD, expert_E, count_E, token_P)


def encode_reply(y_PD: torch.Tensor) -> list[bytes | memoryview]:
    """The body's parts, in order."""
    return [REPLY.pack(*y_PD.shape), raw(y_PD)]


def decode_reply(body: bytearray | bytes | memoryview, dtype: torch.dtype, pairs: int, width: int) -> torch.Tensor:
    """`y_PD` of a reply, which shares its bytes. Raises `WireError` if its shape is not the one asked for."""
    if len(body) != REPLY.size + pairs * width * dtype.itemsize or REPLY.unpack_from(body) != (pairs, width):
        raise WireError(f"a reply to {pairs} pairs of width {width} came back in another shape")
    return torch.frombuffer(body, dtype=dtype, count=pairs * width, offset=REPLY.size).view(pairs, width)
