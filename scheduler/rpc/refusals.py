"""Refusals on the wire: a status code, a text for people, and the reason in full as trailing metadata."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc

from protocol.common_pb2 import Reason as ReasonMessage
from protocol.metadata import REASON_KEY
from scheduler.domain.reasons import Reason

_Code = grpc.StatusCode

_CODES: tuple[tuple[str, grpc.StatusCode], ...] = (
    ("unauthenticated", _Code.UNAUTHENTICATED),
    ("forbidden", _Code.PERMISSION_DENIED),
    ("invalid", _Code.INVALID_ARGUMENT),
    ("ambiguous", _Code.INVALID_ARGUMENT),
    ("malformed", _Code.INVALID_ARGUMENT),
    ("not_found", _Code.NOT_FOUND),
    ("unknown", _Code.NOT_FOUND),
    ("no_such", _Code.NOT_FOUND),
    ("already", _Code.ALREADY_EXISTS),
    ("job_exists", _Code.ALREADY_EXISTS),
    ("request_id_taken", _Code.ALREADY_EXISTS),
    ("no_capacity", _Code.RESOURCE_EXHAUSTED),
    ("capacity", _Code.RESOURCE_EXHAUSTED),
    ("too_slow", _Code.RESOURCE_EXHAUSTED),
    ("disk_full", _Code.RESOURCE_EXHAUSTED),
    ("database_locked", _Code.UNAVAILABLE),
    ("database_unreachable", _Code.UNAVAILABLE),
    ("store_unavailable", _Code.UNAVAILABLE),
    ("stopping", _Code.UNAVAILABLE),
    ("stream_cut", _Code.UNAVAILABLE),
    ("internal", _Code.INTERNAL),
)


def status_code(reason: Reason) -> grpc.StatusCode:
    """The status that fits a reason's code: by its first words; what has none of these is a failed precondition."""
    for start, status in _CODES:
        if reason.code == start or reason.code.startswith(start + "_"):
            return status
    return _Code.FAILED_PRECONDITION


async def abort(context: Any, reason: Reason) -> NoReturn:
    """End the call with the reason. Raises gRPC's AbortError."""
    detail = ReasonMessage(code=reason.code, message=reason.message, remedy=reason.remedy)
    await context.abort(status_code(reason), str(reason), ((REASON_KEY, detail.SerializeToString()),))
    raise AssertionError("abort always raises")
