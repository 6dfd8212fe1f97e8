"""The report."""

from scheduler.simulation.outcome import Outcome


def page(outcome: Outcome, trace: str, policy: str) -> str:
    """To do."""
    return "<svg>"
