"""What a task job's items are: a command with `{name}` for a parameter, or a Python function called with them."""

from __future__ import annotations

import re
from dataclasses import dataclass

Scalar = str | int | float | bool
Parameters = dict[str, Scalar]

_NAME = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True, slots=True)
class Work:
    """What every item of a job runs; exactly one of `command`, `function` and `pickled` is set."""

    job: str
    output: str  # folder, which commands run in where the node can see it
    command: tuple[str, ...] | None = None
    function: str | None = None  # "module:function"
    pickled: str | None = None  # base64 of a cloudpickled function
    names: frozenset[str] = frozenset()  # every parameter that any item has
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one try of an item ended."""

    state: str  # "done" or "failed"
    seconds: float
    exit_status: int | None = None  # negative: the signal that ended it
    error: str = ""
    value_json: str = "null"  # what a function returned
    stdout: str = ""
    stderr: str = ""


class MissingParameter(ValueError):
    """A command names a parameter that this item does not have."""


def fill_in(command: tuple[str, ...], parameters: Parameters, names: frozenset[str]) -> list[str]:
    """The command's arguments with each `{name}` replaced. No shell ever reads them.

    Braces around what no item has as a parameter stay as they are (`awk '{print}'`). Raises `MissingParameter` where
    only some items have it.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in parameters:
            return str(parameters[name])
        if name in names:
            raise MissingParameter(f"the command names {{{name}}}, which this item does not have: add it to the item")
        return match.group(0)

    return [_NAME.sub(value, argument) for argument in command]
