"""Tells what the demo does: with a live bar on a terminal, with plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_PLAIN_EVERY_S = 10.0


class Narrator:
    """Prints steps, what happens in them, and how far a long one is."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._said_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._started_s

    def step(self, number: int, title: str) -> None:
        """Begin one of the demo's steps."""
        self.finish()
        self._console.print(f"\n[bold]{number}. {title}[/]")

    def say(self, text: str) -> None:
        """Something happened."""
        self._console.print(f"   {self.elapsed_s:6.1f} s  {text}", markup=False)

    def progress(self, done: int, total: int, note: str) -> None:
        """How far the present step is."""
        if not self._console.is_terminal:
            if time.monotonic() - self._said_s > _PLAIN_EVERY_S:
                self._said_s = time.monotonic()
                self.say(f"{done}/{total or '?'}  {note}")
            return
        if self._bar is None:
            self._bar = Progress(
                BarColumn(40), TextColumn("{task.fields[note]}"), console=self._console, transient=True
            )
            self._task = self._bar.add_task("", total=total or None, note=note)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total or None, note=f"{done}/{total or '?'}  {note}")

    def finish(self) -> None:
        """The present step is over."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
