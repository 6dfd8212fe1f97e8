"""Where the parts of a local cluster lie under its home folder, and the command line of each."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from fallow.errors import UsageError
from fallow.processes import Part

SITE = "local"
AGENT_GRACE_S = 5.0
"""What a local agent gives its lease when it is told to stop."""

_MAX_HOME_BYTES = 60  # unix sockets lie below it, and their paths may have 107 bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """A cluster's identity and addresses; kept in HOME/cluster.json from its start to its stop."""

    home: Path
    id: str
    nodes: tuple[str, ...]
    address: str = ""  # of the scheduler, once it has run
    page: str = ""

    def __post_init__(self) -> None:
        if len(os.fsencode(self.home)) > _MAX_HOME_BYTES:
            raise UsageError(
                f"{self.home} is too long a path for the unix sockets below it.",
                f"Set FALLOW_HOME to a path of at most {_MAX_HOME_BYTES} bytes.",
            )

    @property
    def database(self) -> str:
        """URL of the scheduler's database."""
        return f"sqlite:///{self.home / 'scheduler.db'}"

    @property
    def part_names(self) -> tuple[str, ...]:
        """Every process, in the order in which they start."""
        return ("scheduler", "site", *self.nodes)

    def part(self, name: str) -> Part:
        """How to start one of them."""
        ready = self.home / "run" / f"{name}.ready"
        return Part(
            name=name,
            arguments=("-m", *self._command(name), "--dir", str(self.home / name), "--ready-file", str(ready)),
            log=self.home / "logs" / f"{name}.log",
            ready_file=ready,
            pid_file=self.home / "run" / f"{name}.pid",
        )

    def _command(self, name: str) -> list[str]:
        link = ["--scheduler", self.address, "--address", "127.0.0.1"]
        if name == "scheduler":
            listen, page = self.address or "127.0.0.1:0", self.page.removeprefix("http://") or "127.0.0.1:0"
            return ["scheduler", "serve", "--db", self.database, "--listen", listen, "--page", page]
        if name == "site":
            return ["runtime", "site", "--name", SITE, *link, "--token-file", str(self.token_file("site"))]
        identity = ["--node", name, "--site", SITE, *link, "--token-file", str(self.token_file("agent"))]
        slice_of_machine = ["--cores", "1", "--memory-bytes", str(_memory_bytes() // (2 * len(self.nodes)))]
        return ["agents", *identity, *slice_of_machine, "--source", "always", "--grace-s", f"{AGENT_GRACE_S:g}"]

    def token_file(self, role: str) -> Path:
        """Where the token of a role is kept."""
        return self.home / "tokens" / role

    def token(self, role: str) -> str:
        """The token of a role, empty before there is one."""
        try:
            return self.token_file(role).read_text().strip()
        except FileNotFoundError:
            return ""

    def keep_token(self, role: str, token: str) -> str:
        """Write a token for its owner's eyes alone, and return it."""
        path = self.token_file(role)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(token + "\n")
        return token

    def save(self) -> None:
        """Say that this cluster runs in its home."""
        self.home.mkdir(parents=True, exist_ok=True)
        partial = self.home / "cluster.json.partial"
        content = {"id": self.id, "nodes": self.nodes, "address": self.address, "page": self.page}
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(self.home / "cluster.json")

    def forget(self) -> None:
        """Remove what says that a cluster runs here; jobs, books, tokens and logs stay."""
        for part in map(self.part, self.part_names):
            part.pid_file.unlink(missing_ok=True)
            part.ready_file.unlink(missing_ok=True)
        for name in ("cluster.json", "context.json"):
            (self.home / name).unlink(missing_ok=True)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def saved_layout(home: Path) -> Layout | None:
    """The cluster that was started in this home and not stopped."""
    try:
        raw = json.loads((home / "cluster.json").read_text())
        return Layout(home, raw["id"], tuple(raw["nodes"]), raw["address"], raw["page"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
