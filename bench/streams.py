"""A client of a served model that notes when every piece of its stream came."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx

PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Streamed:
    """A whole answer: its text, how many tokens the server counted, and when its pieces came."""

    text: str
    tokens: int
    asked_s: float
    arrivals_s: tuple[float, ...]

    def longest_gap_s(self, since_s: float) -> float:
        """The longest wait for a next piece among those that ended after `since_s`."""
        return max((b - a for a, b in pairwise(self.arrivals_s) if b >= since_s), default=0.0)


class Refused(Exception):
    """The server answered with a status of its own choosing."""

    def __init__(self, status: int, body: str) -> None:
        self.status = status
        super().__init__(f"{status}: {body[:300]}")


def stream(
    endpoint: str, model: str, prompt: Any, max_tokens: int, on_piece: Callable[[int], None] = lambda count: None
) -> Streamed:
    """A greedy completion that does not end by itself. Raises `Refused`, or `httpx.HTTPError` if it breaks off."""
    asked = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body = {**asked, "ignore_eos": True, "stream_options": {"include_usage": True}}
    asked_s, pieces, arrivals_s, tokens, over = time.monotonic(), [], [], 0, False
    with httpx.stream("POST", f"{root(endpoint)}/v1/completions", json=body, timeout=PATIENCE_S) as answer:
        if answer.status_code != 200:
            raise Refused(answer.status_code, answer.read().decode(errors="replace"))
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                over = over or line == "data: [DONE]"
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise Refused(500, line)
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                pieces.append(choice["text"])
                arrivals_s.append(time.monotonic())
                on_piece(len(pieces))
    if not over:
        raise httpx.RemoteProtocolError("the stream broke off")
    return Streamed("".join(pieces), tokens, asked_s, tuple(arrivals_s))


def root(endpoint: str) -> str:
    """The endpoint without its version."""
    return endpoint.removesuffix("/").removesuffix("/v1")
