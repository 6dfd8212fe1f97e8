"""A module that the nodes do not have."""

from __future__ import annotations

ANSWER = 42


def train(session: object) -> int:
    """Uses what else is in its module."""
    return answer()


def answer() -> int:
    """See `ANSWER`."""
    return ANSWER
