"""Between text and tokens: a model folder's tokenizer, its chat template, and text that appears token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

UNFINISHED = "�"
MAX_HELD_TOKENS = 32
"""Text that has not become whole characters after so many tokens never will."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class TokenizerMissing(Exception):
    """The model folder has no tokenizer that can be used."""


class BadPrompt(ValueError):
    """A prompt or conversation that this model cannot take."""


class TextCodec:
    """The tokenizer of a model folder."""

    def __init__(self, tokenizer: Tokenizer, template: str, special: dict[str, str], stop_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self.stop_ids = stop_ids
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
        self._template = environment.from_string(template)

    @classmethod
    def from_folder(cls, folder: Path) -> TextCodec:
        """Read a Hugging Face folder's tokenizer. Raises `TokenizerMissing` naming the file that is wrong."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerMissing(f"{path}: no such file. Put the model's tokenizer.json into its folder.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise TokenizerMissing(f"{path}: not a tokenizer: {error}") from error
        settings = _read_json(folder / "tokenizer_config.json")
        special = {
            name: token["content"] if isinstance(token, dict) else token
            for name, token in settings.items()
            if name in ("bos_token", "eos_token", "pad_token", "unk_token") and token
        }
        try:
            return cls(tokenizer, _template(folder, settings), special, _stop_ids(folder, tokenizer, special))
        except TemplateError as error:
            raise TokenizerMissing(f"{folder}: the chat template cannot be read: {error}") from error

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out; U+FFFD where the bytes are not UTF-8 (yet)."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def token_text(self, token: int) -> str:
        """A single token as text, for log-probabilities."""
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def render(self, messages: list[dict[str, Any]]) -> str:
        """A conversation as the model's prompt. Raises `BadPrompt` where the template refuses it."""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, tools=None, **self._special)
        except (TemplateError, TypeError, KeyError) as error:
            raise BadPrompt(f"messages: the model's chat template refuses them: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TokenizerMissing(f"{path}: not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _template(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template or PLAIN_TEMPLATE


def _stop_ids(folder: Path, tokenizer: Tokenizer, special: dict[str, str]) -> tuple[int, ...]:
    """Every token that the folder calls an end: in its generation settings, its config, its tokenizer."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        ends = _read_json(folder / name).get("eos_token_id")
        found.update(ends if isinstance(ends, list) else [] if ends is None else [ends])
    end = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return tuple(sorted(found | ({end} if end is not None else set())))


@dataclass(slots=True)
class Detokenizer:
    """Gives text piece by piece, only whole characters. Invariant: the pieces joined are `decode` of all the tokens.

    A window of the newest tokens is decoded with the window before it, so that rules across tokens (a space that
    belongs to the next word, bytes of one character) see their context.
    """

    codec: TextCodec
    _context: list[int] = field(default_factory=list)
    _window: list[int] = field(default_factory=list)
    _given: int = 0  # characters of the window's text that have been given

    def push(self, token: int) -> str:
        """The text that this token completes; often empty within a character."""
        self._window.append(token)
        text = self._window_text()
        held = len(text) - len(text.rstrip(UNFINISHED))
        if (held or not text) and len(self._window) < MAX_HELD_TOKENS:
            return self._give(text[: len(text) - min(held, 3)])
        piece = self._give(text)
        self._context, self._window, self._given = self._window, [], 0
        return piece

    def flush(self) -> str:
        """What is left at the end, broken characters as U+FFFD."""
        return self._give(self._window_text()) if self._window else ""

    def _window_text(self) -> str:
        before = self.codec.decode(self._context)
        return self.codec.decode([*self._context, *self._window])[len(before) :]

    def _give(self, text: str) -> str:
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece


@dataclass(slots=True)
class StopStrings:
    """Cuts a stream of text at the first stop string, and holds back what may be the beginning of one."""

    stops: tuple[str, ...]
    stopped: bool = False
    _held: str = ""

    def push(self, text: str) -> str:
        """The text that is certain to come before any stop string."""
        if self.stopped:
            return ""
        self._held += text
        hits = [at for at in (self._held.find(stop) for stop in self.stops) if at >= 0]
        if hits:
            self.stopped = True
            piece, self._held = self._held[: min(hits)], ""
            return piece
        keep = max((_overlap(self._held, stop) for stop in self.stops), default=0)
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return piece

    def flush(self) -> str:
        """What was held back, once nothing follows."""
        piece, self._held = self._held, ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
