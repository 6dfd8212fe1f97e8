"""Streams a completion from an OpenAI-compatible endpoint and times every piece."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from fallow.errors import FallowError

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Completion:
    """A streamed text, its tokens, and the time between its pieces."""

    text: str
    tokens: int
    seconds: float
    longest_stall_s: float  # the longest wait for a next piece, once the first was there


def stream_completion(
    endpoint: str, model: str, prompt: str, max_tokens: int, on_piece: Callable[[int], None] = lambda count: None
) -> Completion:
    """A greedy completion; `on_piece` hears how many pieces have come. Raises `FallowError` when it breaks off."""
    asked = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    asked["stream_options"] = {"include_usage": True}
    pieces: list[str] = []
    arrivals_s: list[float] = []
    tokens, started_s, ended = 0, time.monotonic(), False
    for event in _events(endpoint, asked):
        if usage := event.get("usage"):
            tokens = usage["completion_tokens"]
        for choice in event.get("choices") or ():
            if choice.get("text"):
                pieces.append(choice["text"])
                arrivals_s.append(time.monotonic())
                on_piece(len(pieces))
            ended = ended or choice.get("finish_reason") is not None
    if not ended:
        raise FallowError("The stream broke off before its end.", "Read the logs of the serve job.")
    gaps_s = [b - a for a, b in pairwise(arrivals_s)]
    return Completion("".join(pieces), tokens or len(pieces), time.monotonic() - started_s, max(gaps_s, default=0.0))


def _events(endpoint: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    where = urlsplit(endpoint)
    connection = HTTPConnection(where.hostname or "127.0.0.1", where.port or 80, timeout=_TIMEOUT_S)
    try:
        path = where.path.removesuffix("/").removesuffix("/v1") + "/v1/completions"
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise FallowError(f"{endpoint} answered {response.status}: {response.read(2000).decode(errors='replace')}")
        yield from _parsed(response)
    except (OSError, HTTPException) as error:
        raise FallowError(f"The stream from {endpoint} broke: {error!r}.", "Read the logs of the serve job.") from error
    finally:
        connection.close()


def _parsed(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.decode().strip().removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if line.startswith(b"data:") and data:
            event = json.loads(data)
            if "error" in event:
                raise FallowError(f"The endpoint reports an error: {event['error']}.")
            yield event
