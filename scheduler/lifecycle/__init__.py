"""State tables of node, lease, job and worker, and the one way to change a state."""

from scheduler.lifecycle.moves import move
from scheduler.lifecycle.tables import IllegalTransition, render_tables

__all__ = ["IllegalTransition", "move", "render_tables"]
