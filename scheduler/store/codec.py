"""Frozen dataclasses to JSON text and back without loss; ASCII only, so that any database keeps any string."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_text(value: Any, without: tuple[str, ...] = ()) -> str:
    """JSON of a dataclass; fields named in `without` are left out (they have a column of their own)."""
    body = _plain(value)
    for name in without:
        del body[name]
    return json.dumps(body, separators=(",", ":"))


def from_text(kind: type[T], text: str, **columns: Any) -> T:
    """The dataclass again. `columns` gives what was left out; fields that an older Fallow did not know get defaults."""
    reader: Callable[[Any], T] = _reader(cast(Any, kind))
    return reader({**json.loads(text), **columns})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    origin = get_origin(kind)
    if origin is tuple:
        return _tuple_reader(get_args(kind))
    if origin in (Union, types.UnionType):
        (inner,) = (_reader(arg) for arg in get_args(kind) if arg is not type(None))
        return lambda raw: None if raw is None else inner(raw)
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind
    return lambda raw: raw


def _tuple_reader(args: tuple[Any, ...]) -> Callable[[Any], Any]:
    if len(args) == 2 and args[1] is Ellipsis:
        item = _reader(args[0])
        return lambda raw: tuple(item(x) for x in raw)
    items = tuple(_reader(arg) for arg in args)
    return lambda raw: tuple(read(x) for read, x in zip(items, raw, strict=True))


def _dataclass_reader(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    fields = tuple((f.name, _reader(hints[f.name])) for f in dataclasses.fields(kind))
    return lambda raw: kind(**{name: read(raw[name]) for name, read in fields if name in raw})
