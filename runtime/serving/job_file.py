"""What a serve job's controller must find again after its site restarts: the secret, the port, who was started."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.site.controller import LeaseKey, WorkerSlot


@dataclass(slots=True)
class JobFile:
    """Kept on disk, readable by its owner alone. Every change is written at once."""

    path: Path
    secret: bytes = b""
    port: int = 0
    slots: dict[str, WorkerSlot] = field(default_factory=dict)  # started and not known to be gone

    @classmethod
    def open(cls, folder: Path) -> JobFile:
        """The job's file, made new if there is none (or only a damaged one)."""
        path = folder / "serve.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            slots = {slot["worker"]: _slot(slot) for slot in raw["slots"]}
            return cls(path, bytes.fromhex(raw["secret"]), int(raw["port"]), slots)
        except (OSError, ValueError, KeyError, TypeError):
            file = cls(path, secrets.token_bytes(32))
            file.write()
            return file

    def write(self) -> None:
        """Write, then rename."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"secret": self.secret.hex(), "port": self.port, "slots": [asdict(s) for s in self.slots.values()]}
        partial = self.path.with_suffix(".partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        os.replace(partial, self.path)

    def keep_port(self, port: int) -> None:
        """Remember where the endpoint listens, so that it comes back at the same address."""
        if port != self.port:
            self.port = port
            self.write()

    def add(self, slot: WorkerSlot) -> None:
        """A worker is being started."""
        if self.slots.get(slot.worker) != slot:
            self.slots[slot.worker] = slot
            self.write()

    def remove(self, worker: str) -> None:
        """A worker is gone."""
        if self.slots.pop(worker, None) is not None:
            self.write()


def _slot(raw: dict[str, Any]) -> WorkerSlot:
    experts = tuple((layer, expert) for layer, expert in raw["experts"])
    return WorkerSlot(
        **{**raw, "lease": LeaseKey(**raw["lease"]), "experts": experts, "devices": tuple(raw["devices"])}
    )
