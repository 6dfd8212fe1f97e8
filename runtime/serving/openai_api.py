"""The OpenAI API's requests, answers and errors as plain data. What Fallow cannot do is refused, never ignored."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runtime.serving.params import SamplingParams

MAX_CHOICES = 16
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "prompt_logprobs": (None, 0),
    "min_tokens": (None, 0),
    "use_beam_search": (None, False),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
}
"""Parameters that would change the answer and are not supported, with the values at which they do nothing."""


class ApiError(Exception):
    """An error as OpenAI's clients understand it."""

    def __init__(self, status: int, message: str, *, code: str = "", param: str = "", retry_after_s: int = 0) -> None:
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param or None,
                "code": self.code or None,
            }
        }


TokenId = Annotated[int, Field(ge=0)]


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Request(BaseModel):
    """What completions and chats have in common."""

    model_config = ConfigDict(extra="ignore")
    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _list_of_stops(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("stream_options", "stream", "ignore_eos", mode="before")
    @classmethod
    def _default_for_null(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @property
    def alternatives(self) -> int | None:
        """How many log-probabilities per token were asked for; None: none at all."""
        raise NotImplementedError

    def sampling(self, room: int, default_tokens: int, stop_ids: tuple[int, ...], choice: int) -> SamplingParams:
        """How choice number `choice` is sampled, with at most `room` tokens."""
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return SamplingParams(
            max_tokens=min(self.max_tokens or default_tokens, room),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            bias=tuple(sorted((self.logit_bias or {}).items())),
            seed=seed + choice,
            stop_ids=(*(() if self.ignore_eos else stop_ids), *(self.stop_token_ids or ())),
            logprobs=self.alternatives,
        )


class CompletionRequest(Request):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]] = "<|endoftext|>"
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None

    @property
    def alternatives(self) -> int | None:
        """See `Request`."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        tokens = [token for token in self.prompt if isinstance(token, int)]
        return [tokens] if tokens else self.prompt  # type: ignore[return-value]


AnyRequest = TypeVar("AnyRequest", bound=Request)


class TextPart(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def alternatives(self) -> int | None:
        """See `Request`."""
        return (self.top_logprobs or 0) if self.logprobs else None


def parse(kind: type[AnyRequest], raw: Any) -> AnyRequest:
    """Check a request's body. Raises `ApiError` naming the parameter."""
    if not isinstance(raw, dict):
        raise ApiError(400, "The body must be a JSON object.")
    for name, neutral in NEUTRAL.items():
        if name in raw and raw[name] not in neutral:
            raise ApiError(400, f"{name} is not supported by this server: leave it out.", param=name)
    try:
        request = kind.model_validate(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ApiError(400, f"{where}: {fault['msg']}", param=where) from error
    if isinstance(request, CompletionRequest) and request.echo:
        raise ApiError(400, "echo is not supported by this server: leave it out.", param="echo")
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        request.max_tokens = request.max_completion_tokens
    return request


@dataclass(frozen=True, slots=True)
class TokenText:
    """One emitted token as text, with log-probabilities."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(slots=True)
class Piece:
    """Some text of one choice; `finish` ends it."""

    choice: int
    text: str
    finish: str = ""
    tokens: list[TokenText] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request."""

    prompt: int
    completion: int

    def json(self) -> dict[str, int]:
        """As in an answer."""
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


class Answer:
    """Builds the bodies of one request's answer, whole or in chunks."""

    def __init__(self, model: str, chat: bool) -> None:
        self._chat = chat
        self._model = model
        self._id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())

    def opening(self, choices: int) -> list[dict[str, Any]]:
        """Chunks that come before any text."""
        role = {"role": "assistant", "content": ""}
        return [self._chunk([{"index": i, "delta": role, "finish_reason": None}]) for i in range(choices * self._chat)]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One piece of a stream."""
        choice: dict[str, Any] = {"index": piece.choice, "finish_reason": piece.finish or None}
        choice["logprobs"] = self._logprobs(piece.tokens)
        if self._chat:
            choice["delta"] = {"content": piece.text} if piece.text else {}
        else:
            choice["text"] = piece.text
        return self._chunk([choice])

    def closing(self, usage: Usage) -> dict[str, Any]:
        """The chunk with the usage, at a stream's end."""
        return {**self._chunk([]), "usage": usage.json()}

    def whole(self, pieces: list[Piece], usage: Usage) -> dict[str, Any]:
        """The answer in one body; `pieces` has one entry a choice."""
        choices = []
        for piece in sorted(pieces, key=lambda p: p.choice):
            choice: dict[str, Any] = {"index": piece.choice, "finish_reason": piece.finish}
            choice["logprobs"] = self._logprobs(piece.tokens)
            if self._chat:
                choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
            else:
                choice["text"] = piece.text
            choices.append(choice)
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._chunk(choices), "object": kind, "usage": usage.json()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}

    def _logprobs(self, tokens: list[TokenText]) -> dict[str, Any] | None:
        if not tokens:
            return None
        if self._chat:
            return {"content": [{**_scored(t.text, t.logprob), "top_logprobs": _top(t)} for t in tokens]}
        return {
            "tokens": [t.text for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [dict(t.top) for t in tokens],
            "text_offset": [],
        }


def _scored(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _top(token: TokenText) -> list[dict[str, Any]]:
    return [_scored(text, logprob) for text, logprob in token.top]
