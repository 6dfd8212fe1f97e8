"""What a train job's user sees of its steps: progress every second, a line in its log now and then, what was lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from protocol.jobspec import JobSpec
from runtime.site.controller import Reports
from runtime.training.pulse import Event
from runtime.training.tensorboard import EventFile

EVERY_S = 1.0
LOG_EVERY_S = 5.0
WINDOW = 20
"""Steps over which the rate is measured; never across a switch."""


class Progress:
    """Turns step events into `Reports.progress` and `Reports.work_lost`."""

    def __init__(self, job: str, reports: Reports, folder: Path) -> None:
        """Event files for TensorBoard go to `folder`/tensorboard."""
        self._job, self._reports = job, reports
        self._ends_s: deque[float] = deque(maxlen=WINDOW + 1)
        self._step_s = 0.0  # measured time of one step
        self._newest: Event | None = None
        self._told_s = self._logged_s = 0.0
        self._total = self._batch = 0
        self._eval_loss: float | None = None
        self._file: EventFile | None = EventFile(folder / "tensorboard")
        self.since_switch = 0

    def configure(self, spec: JobSpec) -> None:
        """What the job is to do in all."""
        assert spec.train is not None
        self._total, self._batch = spec.train.steps, spec.train.global_batch

    def new_generation(self) -> None:
        """Other workers: measure the rate anew."""
        self._ends_s.clear()
        self.since_switch = 0

    def step(self, event: Event, width: int) -> None:
        """A step was taken."""
        self._newest = event
        self.since_switch = event["since_switch"]
        self._ends_s.append(event["at_s"])
        if len(self._ends_s) > 1:
            self._step_s = (self._ends_s[-1] - self._ends_s[0]) / (len(self._ends_s) - 1)
        if time.monotonic() - self._told_s >= EVERY_S:
            self.flush(width)

    def flush(self, width: int) -> None:
        """Say where the job is now."""
        if self._newest is None:
            return
        self._told_s = time.monotonic()
        rate = self._batch / self._step_s if self._step_s and len(self._ends_s) > 1 else 0.0
        done, loss = self._newest["step"] + 1, self._newest["loss"]
        metrics = {"gradient_norm": self._newest["gradient_norm"] or 0.0}
        metrics |= {} if self._eval_loss is None else {"eval_loss": self._eval_loss}
        self._write(
            done, {"width": width, "samples_per_s": rate, **({} if loss is None else {"loss": loss}), **metrics}
        )
        self._reports.progress(self._job, done, self._total, rate, "samples/s", width, loss or 0.0, metrics)
        if self._told_s - self._logged_s >= LOG_EVERY_S or done == self._total:
            self._logged_s = self._told_s
            line = f"step {done} of {self._total}: loss {loss or 0.0:.4f}, {rate:.1f} samples/s on {width} workers"
            self._reports.log(self._job, "", [line])

    def evaluated(self, event: Event) -> None:
        """The held-out loss was measured."""
        self._eval_loss = event["loss"]
        self._write(event["step"], {"eval_loss": event["loss"]})
        self._reports.log(self._job, "", [f"step {event['step']}: held-out loss {event['loss']:.4f}"])

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._file is None:
            return
        try:
            self._file.add(step, numbers)
        except OSError as error:
            self._file = None
            self._reports.log(self._job, "", [f"no more TensorBoard files are written: {error}"])

    def is_beyond(self, step: int) -> bool:
        """Whether more than `step` steps had been taken."""
        return self._newest is not None and self._newest["step"] + 1 > step

    def back_to(self, step: int, cause: str) -> None:
        """Training goes back to having taken `step` steps."""
        if self._newest is None or not self.is_beyond(step):
            return
        lost = self._newest["step"] + 1 - step
        self._reports.work_lost(self._job, lost, lost * self._step_s, cause)
        self._newest = None
