"""The channel to a scheduler, and its refusals as errors of `fallow.errors`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fallow.context import Context
from fallow.errors import FallowError, RefusedError, Unreachable, UsageError
from protocol.common_pb2 import Reason
from protocol.metadata import REASON_KEY, TOKEN_KEY

T = TypeVar("T")

CALL_TIMEOUT_S = 30.0
"""A call that has had no answer for so long counts as unreachable."""

_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def open_channel(context: Context) -> grpc.Channel:
    """A channel to the context's scheduler: with TLS when the context names an authority, else plain."""
    if not context.tls_ca:
        return grpc.insecure_channel(context.address, options=_OPTIONS)
    try:
        authority = Path(context.tls_ca).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{context.tls_ca} cannot be read: {error.strerror}.", "Point FALLOW_TLS_CA at the authority's certificate."
        ) from error
    return grpc.secure_channel(context.address, grpc.ssl_channel_credentials(authority), options=_OPTIONS)


def credentials(context: Context) -> tuple[tuple[str, str], ...]:
    """Metadata that says who calls."""
    return ((TOKEN_KEY, f"Bearer {context.token}"),) if context.token else ()


def answered(context: Context, call: Callable[[], T]) -> T:
    """The call's answer. Raises `Unreachable` or `RefusedError`."""
    try:
        return call()
    except grpc.RpcError as error:
        raise _translated(context, error) from error


def streamed(context: Context, stream: Any) -> Iterator[Any]:
    """The stream's messages; the stream is cancelled when the reader stops. Raises as `answered` does."""
    try:
        yield from stream
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            raise _translated(context, error) from error
    finally:
        stream.cancel()


def _translated(context: Context, error: Any) -> FallowError:
    """A refusal carries its reason as trailing metadata; whoever else said no has only a status."""
    status = error.code()
    if status in _NO_ANSWER:
        return Unreachable(
            f"The scheduler at {context.address} does not answer ({error.details()}).",
            "See that it runs (`fallow up`, `fallow scheduler serve`) and that FALLOW_ADDRESS is right.",
        )
    for key, value in error.trailing_metadata() or ():
        if key == REASON_KEY:
            reason = Reason.FromString(value)
            return RefusedError(reason.code, reason.message, reason.remedy)
    return RefusedError(status.name.lower(), error.details() or status.name)
