"""A site process with a real Ray head, and raylets that this test starts in the place of agents."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol import common_pb2, site_pb2
from runtime.site.controller import LeaseKey
from runtime.site.nodes import LABEL, label_of
from runtime.site.processes import kill_session
from tests.site.stand_in import TOKEN, StandIn


class RealSite:
    """One site process after the other in one folder; what they say goes to `scheduler`."""

    def __init__(self, folder: Path, scheduler: StandIn, token: str = TOKEN) -> None:
        self.folder = folder
        self.scheduler = scheduler
        self.log = folder / "site.log"
        self._token = folder / "token"
        self._token.write_text(token)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start a site process; returns at once."""
        command = [sys.executable, "-m", "runtime", "site", "--name", "plain", "--token-file", str(self._token)]
        command += ["--scheduler", f"127.0.0.1:{self.scheduler.port}", "--dir", str(self.folder), *more]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        return self.process

    async def ready(self) -> site_pb2.SiteHello:
        """Wait for the hello of the process that was started last."""
        known = len(self.scheduler.hellos)
        self.start()
        await self.scheduler.until(lambda: len(self.scheduler.hellos) > known, 120)
        return self.scheduler.hellos[-1]

    def head(self) -> dict[str, Any]:
        """What `head.json` says."""
        found: dict[str, Any] = json.loads((self.folder / "head.json").read_text())
        return found

    async def kill(self) -> None:
        """SIGKILL the site process, and nothing else."""
        assert self.process is not None
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    async def stop(self) -> int:
        """SIGTERM the site process; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 60)


@dataclass
class Raylet:
    """A borrowed node."""

    lease: LeaseKey
    process: subprocess.Popen[bytes]
    temp_dir: tempfile.TemporaryDirectory[str]

    async def kill(self) -> None:
        """The whole node goes at once, as in a power cut."""
        await asyncio.to_thread(kill_session, self.process.pid)
        self.process.wait()
        self.temp_dir.cleanup()


def start_raylet(hello: site_pb2.SiteHello, lease: LeaseKey, devices: int = 1) -> Raylet:
    """Start what an agent starts for a lease; returns at once."""
    temp_dir = tempfile.TemporaryDirectory(prefix="fallow-t-", ignore_cleanup_errors=True)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={hello.ray_address}"]
    command += [f"--num-cpus={devices}", f"--labels={LABEL}={label_of(lease)}", "--include-log-monitor=false"]
    command += ["--object-store-memory=80000000", "--disable-usage-stats", f"--temp-dir={temp_dir.name}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": hello.ray_token, "FALLOW_LEASE": str(lease)}
    with (Path(temp_dir.name) / "start.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    return Raylet(lease, process, temp_dir)


def task_assignment(
    job: str,
    revision: int,
    output: Path,
    slots: dict[str, LeaseKey],
    cause: str = "start",
    device: str = "cpu:0",
    **task: Any,
) -> site_pb2.SiteCommand:
    """An assignment of a task job with one runner for each entry of `slots`."""
    width = {"min": 1, "max": 4}
    spec = {"kind": "task", "name": "sweep", "width": width, "task": {"output": str(output), **task}}
    message = site_pb2.Assignment(job=job, revision=revision, spec_json=json.dumps(spec), cause=cause)
    for worker, lease in slots.items():
        reference = common_pb2.LeaseRef(node=lease.node, epoch=lease.epoch)
        message.workers.append(
            common_pb2.WorkerSlot(worker=worker, role="runner", lease=reference, devices=[device], address="127.0.0.1")
        )
    return site_pb2.SiteCommand(assign=message)
