"""What can go wrong for someone who uses Fallow: always what is wrong and where, and what to do about it."""

from __future__ import annotations


class FallowError(Exception):
    """Base of all errors of `fallow`. `message` says what is wrong and where, `remedy` what to do."""

    exit_code = 1
    """What the CLI exits with when this error ends it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message} {remedy}".strip())


class UsageError(FallowError):
    """The call itself makes no sense: a file that is not there, an option that does not fit."""

    exit_code = 2


class Unreachable(FallowError):
    """The scheduler, or a node's agent, does not answer."""

    exit_code = 3


class RefusedError(FallowError):
    """The scheduler understood the request and will not carry it out. `code` is stable, for programs."""

    exit_code = 4

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        self.code = code
        super().__init__(message, remedy)


class InvalidSpec(FallowError):
    """A job spec that cannot be accepted. `problems` has one `field.path: what is wrong` line for each fault."""

    exit_code = 4

    def __init__(self, origin: str, problems: list[str]) -> None:
        self.problems = problems
        listing = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{origin} is not a valid job spec:{listing}", "Mend these fields and submit again.")
