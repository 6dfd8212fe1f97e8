"""A whole Slurm cluster on this host, in a folder of its own: real daemons on loopback, a munge key of its own.

For the Slurm tests and the Slurm benchmark. Needs `slurmctld`, `slurmd` and `munged`, and root, as slurmd does. All
daemons run in the foreground as children, carry a marker in their environment, and are ended by their process ids.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from fallow.processes import await_end, belonging, signal_all

MARKER = "FALLOW_SLURM_MACHINE"
_NEEDED = ("slurmctld", "slurmd", "munged", "munge")
_START_LIMIT_S = 60.0


class SlurmFailed(Exception):
    """The cluster does not do as it should; the message carries the end of the log or the command's own words."""


def why_not() -> str:
    """Why no Slurm cluster can be run here; empty if one can."""
    missing = [name for name in _NEEDED if _program(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge, or run `make test-slurm`"
    return "" if os.geteuid() == 0 else "slurmd needs root to start jobs"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True, slots=True)
class MachineShape:
    """What the cluster is to look like. Both partitions hold all nodes; `spare` is the preemptible one."""

    nodes: int = 4
    cpus: int = 2
    grace_s: int = 10
    kill_wait_s: int = 30
    parameters: str = "bf_interval=1,bf_resolution=1,sched_min_interval=100000,batch_sched_delay=0"
    lines: tuple[str, ...] = field(default=())


class SlurmMachine:
    """munged, slurmctld and one slurmd per node. Use it in a `with`."""

    def __init__(self, folder: Path, shape: MachineShape = MachineShape()) -> None:
        self.folder, self.shape = folder, shape
        self.id = secrets.token_hex(8)
        self.nodes = tuple(f"n{number}" for number in range(1, shape.nodes + 1))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = _free_ports(shape.nodes + 1)

    def __enter__(self) -> SlurmMachine:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def conf(self) -> Path:
        """Its slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to speak with this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    # --- daemons -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until all nodes are idle. Raises SlurmFailed."""
        for name in ("spool", "state", "log", "munge"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.write_conf()
        self._start_munge()
        self.start_controller()
        for node in self.nodes:
            self._start_daemon(node, ["slurmd", "-D", "-f", str(self.conf), "-N", node])
        self.await_idle(_START_LIMIT_S)

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        munge.chmod(0o711)
        key = munge / "key"
        if not key.exists():
            key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        self._start_daemon("munged", ["munged", "--foreground", "--force", *options])
        self._await(lambda: (munge / "socket").exists(), "munged does not listen", 10.0)

    def start_controller(self) -> None:
        """Start slurmctld; it takes up the jobs that it left."""
        self._start_daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        self._await(lambda: self.run("scontrol", "ping", check=False).returncode == 0, "slurmctld does not answer")

    def stop_controller(self) -> None:
        """End slurmctld, which saves its state. Killed outright, it would forget jobs of the last few seconds."""
        daemon = self._daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait(30.0)

    def write_conf(self, *more: str, without: Sequence[str] = ()) -> None:
        """Write slurm.conf, with further lines, and without the lines that begin with one of `without`."""
        lines = [*_conf(self.folder, self.shape, self.nodes, self._ports), *self.shape.lines, *more]
        kept = [line for line in lines if not line.startswith(tuple(without))] if without else lines
        self.conf.write_text("\n".join(kept) + "\n")

    def _start_daemon(self, name: str, command: list[str]) -> None:
        program = _program(command[0])
        if program is None:
            raise SlurmFailed(why_not())
        log = self.folder / "log" / f"{name}.out"
        with log.open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment, MARKER: self.id},
                start_new_session=True,
            )

    def stop(self) -> None:
        """End all jobs and daemons. What is left, such as a job step that does not end, is killed."""
        if "slurmctld" in self._daemons:
            with contextlib.suppress(SlurmFailed, subprocess.TimeoutExpired):
                self.run("scancel", "--user=root", check=False)
                self._await(lambda: not self.jobs(), "jobs do not end", 10.0)
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10.0)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait()
        self._daemons.clear()
        self.kill_strays()

    def kill_strays(self) -> None:
        """SIGKILL to every process that carries the marker of this cluster: daemons, job steps and their jobs."""
        for _ in range(50):
            left = belonging(MARKER, lambda value: value == self.id)
            if not left:
                return
            signal_all(left, signal.SIGKILL)
            await_end(left, 1.0)

    # --- commands ------------------------------------------------------------------------------------------------

    def run(
        self, *command: str, check: bool = True, stdin: str | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command. Raises SlurmFailed with its own words."""
        environment = {**os.environ, **self.environment, "SLURM_TIME_FORMAT": "%s", **(more or {})}
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, env=environment, timeout=60)
        if check and done.returncode:
            raise SlurmFailed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def submit(self, script: str, *options: str) -> str:
        """Submit a shell script as a batch job; its id."""
        output = ("--output=/dev/null",) if not any(o.startswith("--output") for o in options) else ()
        done = self.run("sbatch", "--parsable", *output, *options, stdin=f"#!/bin/sh\n{script}\n")
        return done.stdout.split(";")[0].strip()

    def jobs(self, *options: str) -> list[tuple[str, str, str, str]]:
        """(id, state, name, nodes) of all jobs that squeue shows."""
        shown = self.run("squeue", "--noheader", "--array", "--format=%i|%T|%N|%j", *options).stdout
        rows = [line.strip().split("|", 3) for line in shown.splitlines() if line.strip()]
        return [(job, state, name, nodes) for job, state, nodes, name in rows]

    def states(self) -> dict[str, str]:
        """State of every node, such as idle or allocated."""
        shown = self.run("sinfo", "--noheader", "--Node", "--format=%N|%T").stdout
        return {name: state for name, _, state in (line.strip().partition("|") for line in shown.splitlines()) if name}

    def await_idle(self, limit_s: float) -> None:
        """Wait until every node is idle."""
        self._await(lambda: set(self.states().values()) == {"idle"}, "nodes do not become idle", limit_s)

    def _await(self, true: object, problem: str, limit_s: float = _START_LIMIT_S) -> None:
        deadline_s = time.monotonic() + limit_s
        while not true():  # type: ignore[operator]
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline_s:
                raise SlurmFailed(f"{problem}{' (ended: ' + ', '.join(dead) + ')' if dead else ''}\n{self._logs()}")
            time.sleep(0.1)

    def _logs(self) -> str:
        tails = []
        for log in sorted((self.folder / "log").glob("*")):
            lines = log.read_text(errors="replace").splitlines()[-6:]
            tails.append(f"{log.name}:\n" + "\n".join(f"  {line}" for line in lines))
        return "\n".join(tails)


def _conf(folder: Path, shape: MachineShape, nodes: Sequence[str], ports: Sequence[int]) -> Iterator[str]:
    yield from (
        "ClusterName=mini",
        "SlurmctldHost=localhost",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge/socket",
        "SlurmUser=root",
        "SlurmdUser=root",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd-%n.log",
        f"SlurmctldPort={ports[0]}",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SchedulerType=sched/backfill",
        f"SchedulerParameters={shape.parameters}",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        f"KillWait={shape.kill_wait_s}",
        "ReturnToService=2",
        "SlurmdParameters=config_overrides",
        "MpiDefault=none",
        "PlugStackConfig=/dev/null",
    )
    for node, port in zip(nodes, ports[1:], strict=True):
        yield (
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={shape.cpus} "
            "RealMemory=4000 State=UNKNOWN"
        )
    all_nodes = ",".join(nodes)
    yield f"PartitionName=owner Nodes={all_nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off"
    yield (
        f"PartitionName=spare Nodes={all_nodes} MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE "
        f"GraceTime={shape.grace_s}"
    )


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. All are held open until the last is found, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
