"""A whole Fallow on this machine: real processes on loopback, for a laptop, the demo and the tests."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from fallow import control, processes
from fallow.client import Client
from fallow.context import Context, home_dir
from fallow.errors import FallowError, Unreachable, UsageError
from fallow.layout import AGENT_GRACE_S, Layout, saved_layout
from fallow.processes import CLUSTER_VARIABLE, LEASE_VARIABLE, PART_VARIABLE

_START_TIMEOUT_S = 120.0


class LocalCluster:
    """Scheduler (SQLite), one site and some agents under one home folder. Use it in a `with`, or start and stop it.

    A cluster that was stopped and is started again in the same home has its jobs and books still. Methods raise
    `FallowError` when a process does not do as it should, with the last lines of its log.
    """

    def __init__(self, home: Path | str | None = None, nodes: int = 4) -> None:
        """`home` is FALLOW_HOME if left out; the cluster that runs there is taken as it is. Otherwise `nodes`
        agents are to lend one core of this machine each. Raises `UsageError` for a home with too long a path."""
        self.home = Path(home).expanduser().absolute() if home else home_dir()
        self._fresh = Layout(self.home, uuid.uuid4().hex, tuple(f"node-{i + 1}" for i in range(nodes)))
        self._layout = saved_layout(self.home) or self._fresh
        self._client: Client | None = None

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what it is --------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The marker that all of its processes carry in their environment."""
        return self._layout.id

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes."""
        return self._layout.nodes

    @property
    def address(self) -> str:
        """HOST:PORT of its scheduler."""
        return self._layout.address

    @property
    def page(self) -> str:
        """Address of its status page."""
        return self._layout.page

    @property
    def client(self) -> Client:
        """A client with the administrator's token."""
        if self._client is None:
            self._client = Client(context=Context(self.address, self._layout.token("admin"), self.page))
        return self._client

    @property
    def is_running(self) -> bool:
        """Whether any process of the cluster lives."""
        return bool(self.processes())

    def processes(self) -> list[int]:
        """Pids of all live processes of the cluster."""
        folders = tuple(f"{self.home / name}/" for name in self._layout.part_names)
        return processes.belonging(CLUSTER_VARIABLE, lambda value: value == self.id, folders)

    def node_processes(self, node: str) -> list[int]:
        """Pids of all live processes of one node: its agent, and everything that the agent started."""
        found = processes.belonging(PART_VARIABLE, lambda value: value == node, (f"{self.agent_dir(node)}/",))
        return sorted(set(found) & set(self.processes()))

    def lease_processes(self, node: str, epoch: int) -> list[int]:
        """Pids of all live processes that run under one lease."""
        folder = f"{self.agent_dir(node) / f'fwl{epoch}'}/"
        found = processes.belonging(LEASE_VARIABLE, lambda value: value == f"{node}/{epoch}", (folder,))
        return sorted(set(found) & set(self.processes()))

    # --- start and stop ----------------------------------------------------------------------------------------

    def start(self, progress: Callable[[str], None] = lambda line: None) -> None:
        """Start everything and wait until it is ready. Raises `UsageError` when the cluster runs already."""
        if saved_layout(self.home) is not None:
            if processes.pid_of(self._layout.part("scheduler")) is not None:
                raise UsageError(f"A cluster runs in {self.home} already.", "Stop it first with `fallow down`.")
            self.stop()
        self._layout = self._fresh
        self._layout.save()
        try:
            self._start_parts(progress)
        except BaseException:
            self.stop()
            raise

    def _start_parts(self, progress: Callable[[str], None]) -> None:
        progress("scheduler")
        self.start_scheduler()
        progress("site and agents")
        parts = [self._layout.part("site"), *(self._layout.part(node) for node in self.nodes)]
        for part in parts:
            processes.start(part, self._environment())
        for part in parts:
            processes.await_ready(part, _START_TIMEOUT_S)

    def stop(self, grace_s: float = AGENT_GRACE_S) -> None:
        """End everything: agents first, as if their owners had asked; then what is left, by its marker."""
        for names, patience_s in ((self.nodes, grace_s + 10.0), (("site",), 15.0), (("scheduler",), 10.0)):
            pids = [pid for name in names if (pid := processes.pid_of(self._layout.part(name))) is not None]
            processes.signal_all(pids, signal.SIGTERM)
            processes.await_end(pids, patience_s)
        self.kill()

    def kill(self) -> None:
        """SIGKILL every process of the cluster and forget that it ran. Its jobs and books stay in the home."""
        self._end_all(self.processes)
        self._drop_client()
        self._layout.forget()

    def remove(self) -> None:
        """Delete the home of a cluster that has been stopped."""
        shutil.rmtree(self.home, ignore_errors=True)

    # --- parts, one by one -------------------------------------------------------------------------------------

    def start_scheduler(self) -> None:
        """Start the scheduler, at the address that it had before if it ran before, and write the context."""
        admin = self._layout.token("admin") or self._first_token()
        ready = self._start("scheduler")
        self._layout = replace(self._layout, address=ready["address"], page=ready["page"])
        self._layout.save()
        self._drop_client()
        Context(self.address, admin, self.page).write(self.home)
        for role in ("site", "agent"):
            if not self._layout.token(role):
                self._layout.keep_token(role, self.client.create_token(f"local-{role}", role))

    def start_site(self) -> None:
        """Start the site process."""
        self._start("site")

    def start_agent(self, node: str) -> None:
        """Start a node's agent."""
        self._start(node)

    def kill_scheduler(self) -> None:
        """SIGKILL the scheduler."""
        self._kill_part("scheduler")

    def kill_site(self) -> None:
        """SIGKILL the site process alone: its Ray head and its jobs' workers stay."""
        self._kill_part("site")

    def kill_agent(self, node: str) -> None:
        """SIGKILL a node's agent process alone."""
        self._kill_part(node)

    def kill_node(self, node: str) -> None:
        """SIGKILL everything on a node at once, as a power cut would."""
        self._end_all(lambda: self.node_processes(node))

    # --- the owner's word --------------------------------------------------------------------------------------

    def agent_dir(self, node: str) -> Path:
        """Folder of a node's agent, with its control socket. Raises `UsageError` for a node that is not ours."""
        if node not in self.nodes:
            raise UsageError(f"{self.home} has no node {node!r}.", f"Its nodes are {', '.join(self.nodes) or 'none'}.")
        return self.home / node

    def reclaim(self, node: str, grace_s: float = 10.0) -> dict[str, Any]:
        """Have the node's owner ask for it back. Needs no scheduler; returns the agent's answer at once."""
        return control.say(self.agent_dir(node), {"command": "reclaim", "grace_s": grace_s})

    def lend(self, node: str) -> dict[str, Any]:
        """Have the node's owner lend it again."""
        return control.say(self.agent_dir(node), {"command": "lend"})

    def await_ready_nodes(self, count: int, timeout_s: float = 120.0) -> None:
        """Wait until workers can be placed on `count` nodes. Raises `FallowError` when they cannot in time."""
        deadline_s, states = time.monotonic() + timeout_s, ""
        while time.monotonic() < deadline_s:
            with contextlib.suppress(Unreachable):
                nodes = self.client.nodes()
                if sum(node.lease_state == "ready" for node in nodes) >= count:
                    return
                states = ", ".join(f"{node.id} {node.lease_state or node.state}" for node in nodes)
            time.sleep(0.2)
        raise FallowError(f"Not {count} nodes are ready after {timeout_s:g} s ({states}).", f"Read {self.home}/logs.")

    # -----------------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> dict[str, Any]:
        part = self._layout.part(name)
        if processes.pid_of(part) is not None:
            raise UsageError(f"{name} runs already.")
        processes.start(part, self._environment())
        return processes.await_ready(part, _START_TIMEOUT_S)

    def _environment(self) -> dict[str, str]:
        return {CLUSTER_VARIABLE: self.id, "FALLOW_HOME": str(self.home), "OMP_NUM_THREADS": "1"}

    def _kill_part(self, name: str) -> None:
        pid = processes.pid_of(self._layout.part(name))
        if pid is not None:
            processes.signal_all([pid], signal.SIGKILL)
            processes.await_end([pid], 10.0)

    def _end_all(self, pids: Callable[[], list[int]]) -> None:
        """Kill until none is left: a process may start another while it is being killed."""
        deadline_s = time.monotonic() + 30.0
        while left := pids():
            processes.signal_all(left, signal.SIGKILL)
            if time.monotonic() > deadline_s:
                raise FallowError(f"These processes do not end: {left}.", "Look at them with `ps`.")
            processes.await_end(left, 1.0)

    def _first_token(self) -> str:
        """The administrator's token, written into the database before any scheduler runs."""
        command = [sys.executable, "-m", "scheduler", "token", "create", "--db", self._layout.database]
        command += ["--role", "admin", "--name", "local-admin"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_START_TIMEOUT_S)
        if done.returncode:
            raise FallowError(f"The first token cannot be made:\n{done.stderr.strip()}", f"Look at {self.home}.")
        return self._layout.keep_token("admin", done.stdout.split()[-1])

    def _drop_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
