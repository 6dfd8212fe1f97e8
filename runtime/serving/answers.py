"""From a request's sequences to pieces of text, merged over its choices and ended when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from runtime.serving.dispatch import Dispatcher, Generation
from runtime.serving.openai_api import Piece, TokenText, Usage
from runtime.serving.params import Sampled
from runtime.serving.text import Detokenizer, StopStrings, TextCodec


class Answering:
    """The choices of one request under way. Use as a context manager: leaving it cancels what still runs."""

    def __init__(
        self, dispatcher: Dispatcher, codec: TextCodec, generations: list[Generation], stops: tuple[str, ...]
    ) -> None:
        self._dispatcher = dispatcher
        self._codec = codec
        self._stops = stops
        self.generations = generations
        self._counts = [0] * len(generations)
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    def __enter__(self) -> Answering:
        for choice, generation in enumerate(self.generations):
            self._tasks.append(asyncio.create_task(self._to_its_end(choice, generation)))
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for generation in self.generations:
            self._dispatcher.cancel(generation)

    def usage(self, prompt_tokens: int) -> Usage:
        """Tokens so far."""
        return Usage(prompt_tokens, sum(self._counts))

    async def pieces(self) -> AsyncIterator[Piece]:
        """Every piece as it comes, until all choices have ended. Raises what ended one too early."""
        open_choices = len(self.generations)
        while open_choices:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                raise piece
            open_choices -= bool(piece.finish)
            yield piece

    async def whole(self) -> list[Piece]:
        """One piece a choice."""
        whole = [Piece(choice, "") for choice in range(len(self.generations))]
        async for piece in self.pieces():
            choice = whole[piece.choice]
            choice.text += piece.text
            choice.finish = piece.finish
            choice.tokens += piece.tokens
        return whole

    async def _to_its_end(self, choice: int, generation: Generation) -> None:
        """Whatever happens, who waits for the next piece hears of it."""
        try:
            await self._follow(choice, generation)
        except Exception as error:
            self._pieces.put_nowait(error)

    async def _follow(self, choice: int, generation: Generation) -> None:
        text, stops = Detokenizer(self._codec), StopStrings(self._stops)
        tokens: list[TokenText] = []
        while True:
            step = await generation.steps.get()
            if step.sampled is None:
                self._pieces.put_nowait(step.error or RuntimeError("a step without token and error"))
                return
            self._counts[choice] += 1
            new = "" if step.finish == "stop" else text.push(step.sampled.token)
            ready = stops.push(new + (text.flush() if step.finish else ""))
            finish = "stop" if stops.stopped else step.finish
            tokens += self._scored(step.sampled)
            if finish:
                self._dispatcher.cancel(generation)  # a stop string ends it before its engine does
                self._pieces.put_nowait(Piece(choice, ready + stops.flush(), finish, tokens))
                return
            if ready:
                self._pieces.put_nowait(Piece(choice, ready, "", tokens))
                tokens = []

    def _scored(self, sampled: Sampled) -> list[TokenText]:
        if sampled.logprob is None:
            return []
        top = tuple((self._codec.token_text(token), logprob) for token, logprob in sampled.top)
        return [TokenText(self._codec.token_text(sampled.token), sampled.logprob, top)]


async def first_and_rest(pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The same pieces, once the first has come: an error before it can still become a status code."""
    first = await anext(pieces)

    async def both() -> AsyncIterator[Piece]:
        yield first
        async for piece in pieces:
            yield piece

    return both()


async def with_pauses(pieces: AsyncIterator[Piece], pause_s: float) -> AsyncIterator[Piece | None]:
    """The same pieces, and None whenever none has come for `pause_s`."""
    upcoming: asyncio.Future[Piece] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(pieces))
            done, _ = await asyncio.wait({upcoming}, timeout=pause_s)
            if not done:
                yield None
                continue
            try:
                piece = upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
            yield piece
    finally:
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await upcoming
