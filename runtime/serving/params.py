"""How a sequence is continued, and what one step of it gives. Plain values: gateway and engines share them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BOUNDS: dict[str, tuple[float, float]] = {
    "max_tokens": (1, float("inf")),
    "temperature": (0, 100),
    "top_k": (0, float("inf")),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is continued. `temperature` 0 is greedy.

    What leaves tokens out: `top_k` (0: none), `top_p` (1: none), and `min_p`, a share of the likeliest token's
    probability. What changes their scores before: `bias` is added; of a token that is in the answer `presence_penalty`
    is taken off once and `frequency_penalty` each time; the score of one in prompt or answer is divided by
    `repetition_penalty` (multiplied, where it is negative).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # how many alternatives to report beside the chosen token's own

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}: must be from {low:g} to {high:g}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: must be over 0 and at most 1")
        if not 0 < self.repetition_penalty <= 100:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}: must be over 0 and at most 100")

    @property
    def rescores(self) -> bool:
        """Whether scores depend on what has been said, or are shifted."""
        neutral = self.repetition_penalty == 1 and not self.presence_penalty and not self.frequency_penalty
        return bool(self.bias) or not neutral

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SamplingParams:
        """From the wire. Raises `TypeError` or `ValueError`."""
        bias = tuple((int(token), float(shift)) for token, shift in fields.get("bias", ()))
        return cls(**{**fields, "stop_ids": tuple(fields.get("stop_ids", ())), "bias": bias})


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token, its log-probability, and the likeliest alternatives as (token, log-probability)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
