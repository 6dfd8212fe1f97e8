# ruff: noqa: N815 - tensors carry their dimensions in fields too
"""An expert call as bytes: the rows of one layer's tokens that one shard is to pass through its experts.

Dimensions: T tokens sent, D hidden width, P (token, expert) pairs. The answer has one row per pair, unweighted and
in the pairs' order, so that the engine's sum does not depend on which shard an expert lies on.

    call:  layer u32 | T u32 | D u32 | P u32 | dtype u32 | pad u32 | x_TD | token_P i32 | expert_P i32
    reply: P u32 | D u32 | y_PD
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch

from runtime.serving.wire import WireError

CALL = struct.Struct("<6I")
REPLY = struct.Struct("<2I")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class ExpertCall:
    """`token_P[p]` is the row of `x_TD` that goes through expert `expert_P[p]`; experts ascend."""

    layer: int
    x_TD: torch.Tensor
    token_P: torch.Tensor
    expert_P: torch.Tensor


def raw(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, without a copy where it is contiguous on the CPU already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def encode_call(call: ExpertCall) -> list[bytes | memoryview]:
    """The body's parts, in order."""
    tokens, width = call.x_TD.shape
    head = CALL.pack(call.layer, tokens, width, call.token_P.numel(), DTYPES.index(call.x_TD.dtype), 0)
    return [head, raw(call.x_TD), raw(call.token_P.to(torch.int32)), raw(call.expert_P.to(torch.int32))]


def decode_call(body: bytearray | bytes) -> ExpertCall:
    """The call in a body. Raises `WireError` where sizes or indices do not fit."""
    if len(body) < CALL.size:
        raise WireError("an expert call is cut short")
    layer, tokens, width, pairs, dtype_code, _ = CALL.unpack_from(body)
    if dtype_code >= len(DTYPES):
        raise WireError(f"an expert call has the unknown dtype {dtype_code}")
    dtype = DTYPES[dtype_code]
    x_bytes = tokens * width * dtype.itemsize
    if len(body) != CALL.size + x_bytes + 8 * pairs or not tokens or not pairs or not width:
        raise WireError(f"an expert call of {tokens}x{width} with {pairs} pairs does not fit its {len(body)} bytes")
    at = CALL.size
    x_TD = torch.frombuffer(body, dtype=dtype, count=tokens * width, offset=at).view(tokens, width)
    token_P = torch.frombuffer(body, dtype=torch.int32, count=pairs, offset=at + x_bytes).long()
    expert_P = torch.frombuffer(body, dtype=torch.int32, count=pairs, offset=at + x_bytes + 4 * pairs).long()
    if int(token_P.min()) < 0 or int(token_P.max()) >= tokens:
        raise WireError("an expert call names a token that it did not send")
    return ExpertCall(layer, x_TD, token_P, expert_P)


def encode_reply(y_PD: torch.Tensor) -> list[bytes | memoryview]:
    """The body's parts, in order."""
    return [REPLY.pack(*y_PD.shape), raw(y_PD)]


def decode_reply(body: bytearray | bytes, dtype: torch.dtype, pairs: int, width: int) -> torch.Tensor:
    """`y_PD` of a reply. Raises `WireError` if its shape is not the one asked for."""
    if len(body) != REPLY.size + pairs * width * dtype.itemsize or REPLY.unpack_from(body) != (pairs, width):
        raise WireError(f"a reply to {pairs} pairs of width {width} came back in another shape")
    return torch.frombuffer(body, dtype=dtype, count=pairs * width, offset=REPLY.size).view(pairs, width)
