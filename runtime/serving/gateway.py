"""The OpenAI-compatible endpoint: one address for a served model, whatever moves behind it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from runtime.serving.answers import Answering, first_and_rest, with_pauses
from runtime.serving.dispatch import Dispatcher, GenerationFailed, NoCapacity, QueueFull
from runtime.serving.openai_api import Answer, ApiError, ChatRequest, CompletionRequest, Piece, Request, parse
from runtime.serving.text import BadPrompt, TextCodec

log = logging.getLogger(__name__)
Result = TypeVar("Result")

MAX_BODY_BYTES = 16_000_000
HOLD_S = 120.0
"""A request whose first token does not come, while nobody gets any, is given back after this long."""
PAUSE_S = 10.0
"""A stream that stands still says so this often, in a comment, so that nothing between takes it for dead."""
COMPLETION_TOKENS = 16  # OpenAI's default for completions


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the endpoint must know of the model."""

    name: str
    vocab_size: int
    max_length: int  # tokens, prompt and answer


class Gateway:
    """The endpoint's application. Everything runs on one event loop."""

    def __init__(self, model: ServedModel, codec: TextCodec, dispatcher: Dispatcher, api_key: str | None) -> None:
        self._model = model
        self._codec = codec
        self._dispatcher = dispatcher
        self._api_key = api_key
        self._started_s = int(time.time())
        self._prompt_tokens = 0
        self._refused = 0
        self._finished = 0
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._guard(self._models)),
                Route("/v1/models/{model:path}", self._guard(self._one_model)),
                Route("/v1/completions", self._guard(self._completions), methods=["POST"]),
                Route("/v1/chat/completions", self._guard(self._chat), methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )

    # --- requests ----------------------------------------------------------------------------------------------

    async def _completions(self, http: HttpRequest) -> Response:
        request = parse(CompletionRequest, await _body(http))
        prompts = [self._tokens(prompt) for prompt in request.prompts]
        if not prompts:
            raise ApiError(400, "prompt: give at least one prompt.", param="prompt")
        return await self._answer(http, request, prompts, chat=False)

    async def _chat(self, http: HttpRequest) -> Response:
        request = parse(ChatRequest, await _body(http))
        messages = [{"role": message.role, "content": message.text} for message in request.messages]
        try:
            text = self._codec.render(messages)
        except BadPrompt as error:
            raise ApiError(400, str(error), param="messages") from error
        return await self._answer(http, request, [self._codec.encode(text, add_special=False)], chat=True)

    async def _answer(self, http: HttpRequest, request: Request, prompts: list[list[int]], chat: bool) -> Response:
        self._check_model(request.model)
        self._check_token_ids(request)
        self._check_lengths(prompts, "messages" if chat else "prompt")
        choices = [prompt for prompt in prompts for _ in range(request.n or 1)]
        try:
            self._dispatcher.check_room(len(choices))
        except QueueFull as error:
            self._refused += 1
            raise ApiError(429, f"{error}. Try again later.", code="queue_full", retry_after_s=2) from error
        answering = self._start(request, choices, chat)
        self._prompt_tokens += sum(len(prompt) for prompt in prompts)
        answer, prompt_tokens = Answer(self._model.name, chat), sum(len(prompt) for prompt in prompts)
        with ExitStack() as stack:
            stack.enter_context(answering)
            if not request.stream:
                whole = await _unless_gone(http, answering.whole())
                self._finished += 1
                return JSONResponse(answer.whole(whole, answering.usage(prompt_tokens)))
            pieces = await _unless_gone(http, first_and_rest(answering.pieces()))
            keep = stack.pop_all()
        events = self._events(request, answer, answering, pieces, prompt_tokens, keep)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    def _start(self, request: Request, choices: list[list[int]], chat: bool) -> Answering:
        generations = []
        for i, prompt in enumerate(choices):
            room = self._model.max_length - len(prompt)
            params = request.sampling(room, room if chat else COMPLETION_TOKENS, self._codec.stop_ids, i)
            generations.append(self._dispatcher.submit(tuple(prompt), params, request.priority or 0))
        return Answering(self._dispatcher, self._codec, generations, tuple(request.stop))

    async def _events(
        self,
        request: Request,
        answer: Answer,
        answering: Answering,
        pieces: AsyncIterator[Piece],
        prompt_tokens: int,
        keep: ExitStack,
    ) -> AsyncIterator[str]:
        with keep:
            try:
                for chunk in answer.opening(len(answering.generations)):
                    yield _event(chunk)
                async for piece in with_pauses(pieces, PAUSE_S):
                    yield ": the model is being moved\n\n" if piece is None else _event(answer.chunk(piece))
                if request.stream_options.include_usage:
                    yield _event(answer.closing(answering.usage(prompt_tokens)))
                self._finished += 1
                yield "data: [DONE]\n\n"
            except Exception as error:  # the client hears of it: an answer that broke off looks like a lost network
                yield _event(_as_api_error(error).body)

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._codec.encode(prompt)
        self._check_tokens(prompt, "prompt")
        return prompt

    def _check_token_ids(self, request: Request) -> None:
        self._check_tokens(request.logit_bias or (), "logit_bias")
        self._check_tokens(request.stop_token_ids or (), "stop_token_ids")

    def _check_tokens(self, tokens: Iterable[int], param: str) -> None:
        limit = self._model.vocab_size - 1
        for token in tokens:
            if not 0 <= token <= limit:
                raise ApiError(400, f"{param}: {token} is not a token of this model (0 to {limit}).", param=param)

    def _check_model(self, name: str) -> None:
        if name != self._model.name:
            message = f"The model {name!r} is not served here: use {self._model.name!r}."
            raise ApiError(404, message, code="model_not_found", param="model")

    def _check_lengths(self, prompts: list[list[int]], param: str) -> None:
        for prompt in prompts:
            if not prompt:
                raise ApiError(400, f"{param}: an empty prompt has nothing to continue.", param=param)
            if len(prompt) >= self._model.max_length:
                message = f"{param}: {len(prompt)} tokens leave no room, the model takes {self._model.max_length}."
                raise ApiError(400, message, code="context_length_exceeded", param=param)

    # --- the rest ----------------------------------------------------------------------------------------------

    def _guard(
        self, handler: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """Check the token; turn errors into OpenAI's form."""

        async def guarded(http: HttpRequest) -> Response:
            try:
                self._authorise(http)
                return await handler(http)
            except ApiError as error:
                return _error_response(error)
            except _ClientGone:
                return Response(status_code=499)
            except Exception as error:
                return _error_response(_as_api_error(error))

        return guarded

    def _authorise(self, http: HttpRequest) -> None:
        given = http.headers.get("authorization", "").removeprefix("Bearer ")
        if self._api_key is not None and not hmac.compare_digest(given.encode(), self._api_key.encode()):
            raise ApiError(401, "Incorrect API key: use the api_key of the serve job.", code="invalid_api_key")

    async def _models(self, http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _one_model(self, http: HttpRequest) -> Response:
        self._check_model(http.path_params["model"])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._model.name,
            "object": "model",
            "created": self._started_s,
            "owned_by": "fallow",
            "max_model_len": self._model.max_length,
        }

    async def _health(self, http: HttpRequest) -> Response:
        counts = self._dispatcher.counts()
        ready = counts["engines"] + counts["understudies"] > 0
        return JSONResponse({"status": "ok" if ready else "waiting for an engine", **counts}, 200 if ready else 503)

    async def _metrics(self, http: HttpRequest) -> Response:
        counts = self._dispatcher.counts()
        rows = [
            ("vllm:num_requests_running", "gauge", counts["running"]),
            ("vllm:num_requests_waiting", "gauge", counts["waiting"]),
            ("vllm:prompt_tokens_total", "counter", self._prompt_tokens),
            ("vllm:generation_tokens_total", "counter", counts["tokens"]),
            ("vllm:request_success_total", "counter", self._finished),
            ("fallow:requests_refused_total", "counter", self._refused),
            ("fallow:sequence_replays_total", "counter", counts["replays"]),
            ("fallow:engines", "gauge", counts["engines"]),
        ]
        label = json.dumps(self._model.name)
        lines = [f"# TYPE {name} {kind}\n{name}{{model_name={label}}} {value:g}" for name, kind, value in rows]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


class _ClientGone(Exception):
    """The client hung up."""


async def _body(http: HttpRequest) -> Any:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body is over {MAX_BODY_BYTES} bytes.")
    try:
        return json.loads(body)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}") from error


async def _unless_gone(http: HttpRequest, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result. Raises `_ClientGone` as soon as the client hangs up."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_hung_up(http))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _ClientGone
        return task.result()
    finally:
        for future in (task, watch):
            future.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.gather(task, watch)


async def _hung_up(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, NoCapacity):
        return ApiError(503, f"{error}. Try again later.", code="no_capacity", retry_after_s=10)
    if not isinstance(error, GenerationFailed):
        log.error("a request failed", exc_info=error)
    return ApiError(500, f"The model failed on this request: {error}", code="generation_failed")


def _error_response(error: ApiError) -> Response:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
    return JSONResponse(error.body, error.status, headers=headers)


async def _not_found(http: HttpRequest, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return _error_response(ApiError(status, f"{http.method} {http.url.path} is not part of this API."))
