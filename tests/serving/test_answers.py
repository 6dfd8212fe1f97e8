"""Whatever goes wrong behind a request, its client is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import httpx
import pytest

from runtime.serving.dispatch import Dispatcher, Generation, Step
from runtime.serving.gateway import Gateway, ServedModel
from runtime.serving.params import Sampled, SamplingParams
from runtime.serving.text import TextCodec


class Codec:
    """Gives each token as a letter, and knows no more than three."""

    stop_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return [0] * len(text)

    def decode(self, tokens: list[int]) -> str:
        return "".join("abc"[token] for token in tokens)


class Tokens(Dispatcher):
    """Its engine says the same to all: two tokens that can be told, and one that cannot."""

    def submit(self, prompt: tuple[int, ...], params: SamplingParams, priority: int = 0) -> Generation:
        generation = super().submit(prompt, params, priority)
        for token in (0, 1, 7):
            generation.steps.put_nowait(Step(Sampled(token)))
        return generation


async def asked(stream: bool) -> httpx.Response:
    gateway = Gateway(ServedModel("m", 10, 100), cast(TextCodec, Codec()), Tokens(b"s", 1, 10), None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://m") as client:
        async with asyncio.timeout(30):
            return await client.post("/v1/completions", json={"model": "m", "prompt": "x", "stream": stream})


async def test_a_stream_ends_with_the_error() -> None:
    answer = await asked(stream=True)
    events: list[dict[str, Any]] = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert "".join(choice["text"] for event in events[:-1] for choice in event["choices"]) == "ab"
    assert events[-1]["error"]["code"] == "generation_failed"


async def test_an_answer_that_cannot_be_told_is_an_error_of_the_api() -> None:
    answer = await asked(stream=False)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("stream", [True, False])
async def test_what_failed_keeps_no_place(stream: bool) -> None:
    gateway_counts = []

    class Watched(Tokens):
        def cancel(self, generation: Generation) -> None:
            super().cancel(generation)
            gateway_counts.append(self.counts()["waiting"] + self.counts()["running"])

    gateway = Gateway(ServedModel("m", 10, 100), cast(TextCodec, Codec()), Watched(b"s", 1, 10), None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://m") as client:
        await client.post("/v1/completions", json={"model": "m", "prompt": "x", "stream": stream})
    assert gateway_counts[-1] == 0
