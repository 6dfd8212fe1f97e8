"""How a sequence is continued, and what one step of it gives. Plain values: gateway and engines share them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is continued. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave nothing out."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # how many alternatives to report beside the chosen token's own

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}: must be at least 1")
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature is {self.temperature}: must be between 0 and 100")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: must be over 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: must not be negative; 0 keeps all")

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SamplingParams:
        """From the wire. Raises `TypeError` or `ValueError`."""
        return cls(**{**fields, "stop_ids": tuple(fields.get("stop_ids", ()))})


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token, its log-probability, and the likeliest alternatives as (token, log-probability)."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
