"""What the Slurm tests need of Fallow: a stand-in for the scheduler that says how much work there is and keeps what
agents tell it, and a real `fallow pilots` process against a real Slurm cluster."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import yaml

from bench.slurm_machine import SlurmMachine
from fallow.local_cluster import LocalCluster
from protocol import agent_pb2, client_pb2

PATIENT_S = 60.0
SITE = "mini"


class Scheduler:
    """Says that there is one job of so many workers and which nodes are there, and keeps every node's last report."""

    def __init__(self) -> None:
        self.width = 0
        self.reports: dict[str, agent_pb2.NodeReport] = {}
        self.reclaims: list[tuple[str, float]] = []
        self.connected: set[str] = set()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=40))
        agents = grpc.stream_stream_rpc_method_handler(
            self._connect, agent_pb2.AgentMessage.FromString, agent_pb2.AgentCommand.SerializeToString
        )
        jobs = grpc.unary_unary_rpc_method_handler(
            self._jobs, client_pb2.ListJobsRequest.FromString, client_pb2.ListJobsResponse.SerializeToString
        )
        nodes = grpc.unary_unary_rpc_method_handler(
            self._nodes,
            client_pb2.ListNodesRequest.FromString,
            client_pb2.ListNodesResponse.SerializeToString,
        )
        services = {
            "fallow.v1.AgentService": {"Connect": agents},
            "fallow.v1.FallowService": {"ListJobs": jobs, "ListNodes": nodes},
        }
        for name, methods in services.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _jobs(self, request: Any, context: Any) -> client_pb2.ListJobsResponse:
        job = client_pb2.Job(id="j1", state="running", useful_width=self.width)
        return client_pb2.ListJobsResponse(jobs=[job] if self.width else [])

    def _nodes(self, request: Any, context: Any) -> client_pb2.ListNodesResponse:
        there = [(node, node.partition(".")[0]) for node in list(self.connected)]
        nodes = [client_pb2.Node(id=node, site=site, source="pilot", state="spare") for node, site in there]
        return client_pb2.ListNodesResponse(nodes=nodes)

    def _connect(self, messages: Any, context: Any) -> Any:
        over = threading.Event()
        context.add_callback(over.set)
        threading.Thread(target=self._listen, args=(messages, over), daemon=True).start()
        over.wait()
        yield from ()

    def _listen(self, messages: Any, over: threading.Event) -> None:
        node = ""
        try:
            for message in messages:
                node = message.hello.node or node
                self.connected.add(node)
                if message.HasField("report"):
                    self.reports[node] = message.report
        except grpc.RpcError:
            pass
        finally:
            self.connected.discard(node)
            over.set()

    def stop(self) -> None:
        self._server.stop(0)


class Harvest:
    """One `fallow pilots` process of a user of the machine; its settings can be changed before it is started."""

    def __init__(self, machine: SlurmMachine, folder: Path, user: str = "root", site: str = SITE) -> None:
        self.machine, self.folder, self.user, self.site = machine, folder, user, site
        self.scheduler = Scheduler()
        self.dir = folder / "pilots"
        self.temp = folder / "tmp"
        self.python = sys.executable
        self.temp.mkdir()
        shutil.chown(folder, user)
        shutil.chown(self.temp, user)
        for role in ("site", "agent"):
            (folder / role).write_text(f"fallow-{role}-secret-of-{role}")
            (folder / role).chmod(0o600)
            shutil.chown(folder / role, user)
        self.settings: dict[str, Any] = {
            "site": site,
            "scheduler": f"127.0.0.1:{self.scheduler.port}",
            "token_file": str(folder / "site"),
            "agent_token_file": str(folder / "agent"),
            "dir": str(self.dir),
            "place": {"partition": "spare"},
            "bag": {"lengths_min": [2, 4, 8], "each": 4, "pending": 12},
            "agent": {"cores": 1, "memory_bytes": 1_000_000_000, "address": "127.0.0.1", "temp_dir": str(self.temp)},
            "ask_s": 0.5,
            "quick_s": 1.0,
            "quiet_s": 4.0,
            "patience_s": 4.0,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {"FALLOW_TOKEN": "fallow-admin-never-to-be-passed-on"}

    def __enter__(self) -> Harvest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log())
        self.stop()
        self.machine.run("scancel", f"--user={self.user}", check=False)
        self.scheduler.stop()

    def start(self) -> None:
        """Start the process."""
        config = self.folder / "pilots.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        with (self.folder / "pilots.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, "-m", "agents", "pilots", "--slurm", "--config", str(config)],
                env={**os.environ, **self.machine.environment, **self.environment},
                stdout=log,
                stderr=log,
                user=self.user,
                extra_groups=[],
                cwd="/",
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end, and wait."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(PATIENT_S)

    def log(self) -> str:
        """What it and its pilots said."""
        logs = [self.folder / "pilots.log", *sorted((self.dir / "log").glob("*"))]
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in logs if log.exists())

    def status(self) -> dict[str, Any]:
        """What it last noted."""
        try:
            found: dict[str, Any] = json.loads((self.dir / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def pilots(self, state: str = "") -> list[str]:
        """Ids of pilots, of one state or in all, as squeue shows them."""
        ours = f"fallow-{self.site}"
        return [job for job, now, name, _ in self.machine.jobs() if name == ours and state in ("", now)]

    def await_running(self, count: int) -> None:
        """Wait until so many pilots run and their agents are with the scheduler."""

        def so() -> bool:
            assert self.process is None or self.process.poll() is None, self.log()
            return len(self.pilots("RUNNING")) == count and len(self.scheduler.connected) == count

        until(so, self.log)


def until(true: Callable[[], object], story: Callable[[], str] = str, limit_s: float = PATIENT_S) -> float:
    """Wait until it is true; the seconds that took."""
    began_s = time.monotonic()
    while not true():
        time.sleep(0.1)
        assert time.monotonic() - began_s < limit_s, f"not so after {limit_s:g} s\n{story()}"
    return time.monotonic() - began_s


# --- beside a whole Fallow --------------------------------------------------------------------------------------------


def settings(fallow: LocalCluster, temp: Path, site: str) -> dict[str, object]:
    """Of pilots of a site."""
    return {
        "site": site,
        "scheduler": fallow.address,
        "token_file": str(fallow.home / "tokens" / "site"),
        "agent_token_file": str(fallow.home / "tokens" / "agent"),
        "dir": str(fallow.home / f"pilots-{site}"),
        "place": {"partition": "spare", "environment": {"OMP_NUM_THREADS": "1"}},
        "bag": {"lengths_min": [5, 20], "each": 3},
        "agent": {"cores": 1, "memory_bytes": 1_000_000_000, "address": "127.0.0.1", "temp_dir": str(temp)},
        "quick_s": 1.0,
        "quiet_s": 10.0,
    }


@contextlib.contextmanager
def harvesting(machine: SlurmMachine, fallow: LocalCluster, temp: Path) -> Iterator[Path]:
    """`fallow pilots` of the cluster's own site; its log. `temp` is the nodes' folder for temporary files."""
    config, log = fallow.home / "pilots.yaml", fallow.home / "pilots.log"
    config.write_text(yaml.safe_dump(settings(fallow, temp, "local")))
    command = [sys.executable, "-m", "agents", "pilots", "--slurm", "--config", str(config)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env={**os.environ, **machine.environment}, stdout=output, stderr=output)
    try:
        yield log
    finally:
        process.terminate()
        status = process.wait(60)
        for one in (log, *sorted((fallow.home / "pilots-local" / "log").glob("*"))):
            print(one.read_text(errors="replace"))
    assert status == 0
