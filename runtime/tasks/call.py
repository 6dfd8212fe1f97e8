"""Calls one Python function in a process of its own: what to call comes on standard input, the value goes to a file.

A process of its own, so that a crash, a time-out or a changed working directory stays with this one item.
"""

from __future__ import annotations

import base64
import importlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(result_file: str) -> int:
    """Exit status 0 if the function returned something that JSON holds, else 1 with the story on stderr."""
    call = json.load(sys.stdin)
    value = load(call["function"], call["pickled"])(**call["parameters"])
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        print(f"the function returned what JSON cannot hold ({error}): return numbers, texts, lists", file=sys.stderr)
        return 1
    Path(result_file).write_text(text)
    return 0


def load(function: str | None, pickled: str | None) -> Callable[..., Any]:
    """The function by its name 'module:function', or from a pickle that the job's own user made."""
    if pickled is not None:
        loaded: Callable[..., Any] = pickle.loads(base64.b64decode(pickled))
        return loaded
    module, _, name = (function or "").partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
