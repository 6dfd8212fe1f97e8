"""Every command of docker-compose.yml, started by hand on loopback: PostgreSQL, TLS, tokens, site and two agents."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fallow.client import Client
from fallow.context import read_context
from fallow.errors import FallowError, RefusedError, Unreachable
from fallow.processes import belonging
from tests.end_to_end.postgres import PASSWORD, free_port, postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
ENTRY = {"bootstrap": [str(ROOT / "deploy" / "bootstrap")]}
ON_LOOPBACK = {"site": ["--address=127.0.0.1"], "agent-1": ["--address=127.0.0.1"], "agent-2": ["--address=127.0.0.1"]}


class Deployment:
    """The services of the compose file as processes below one folder."""

    def __init__(self, folder: Path, database_port: int) -> None:
        self.folder = folder
        self.ports = {"8700": str(free_port()), "8701": str(free_port())}
        self._database_port = database_port
        self._running: list[subprocess.Popen[bytes]] = []

    def command(self, service: str) -> list[str]:
        """The service's command line with this machine's places in it."""
        entry = ENTRY.get(service) or ["fallow", *service.split("-")[:1]]
        words = [self._here(service, word) for word in SERVICES[service]["command"]]
        return [*entry, *(words[1:] if words[0] == service else words), *ON_LOOPBACK.get(service, [])]

    def _here(self, service: str, word: str) -> str:
        word = word.replace("${FALLOW_DB_PASSWORD}", PASSWORD).replace(
            "@postgres/", f"@127.0.0.1:{self._database_port}/"
        )
        word = word.replace("/secrets", str(self.folder / "secrets")).replace("/tmp/ready", str(self.folder / "ready"))
        word = word.replace("/var/lib/fallow", str(self.folder / service)).replace("scheduler:87", "localhost:87")
        for inside, here in self.ports.items():
            word = word.replace(f":{inside}", f":{here}")
        return word

    def start(self, service: str) -> None:
        """Start it in the background."""
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(service), stdout=log, stderr=log, env=self.environment(), start_new_session=True
            )
        self._running.append(process)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run something to its end."""
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=120)

    def environment(self) -> dict[str, str]:
        """The image's: our commands on PATH, a context for people, and a mark to find strays by."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        home = str(self.folder / "secrets" / "user")
        return {**os.environ, "PATH": path, "FALLOW_HOME": home, "FALLOW_CLUSTER": self.folder.name}

    def stop(self) -> None:
        """Stop everything in the reverse order, as compose would."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._running):
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        for pid in belonging("FALLOW_CLUSTER", lambda value: value == self.folder.name):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    folder = Path(tempfile.mkdtemp(prefix="fw-c-"))
    with postgres() as port:
        made = Deployment(folder, port)
        try:
            first = made.run(*made.command("bootstrap"))
            assert first.returncode == 0, first.stderr
            made.start("scheduler")
            deadline_s = time.monotonic() + 60
            while not (folder / "ready").exists():
                assert time.monotonic() < deadline_s, (folder / "scheduler.log").read_text()
                time.sleep(0.1)
            for service in ("site", "agent-1", "agent-2"):
                made.start(service)
            yield made
        finally:
            made.stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def client(deployment: Deployment) -> Iterator[Client]:
    with Client(context=read_context(deployment.folder / "secrets" / "user")) as client:
        yield client


def test_both_agents_lend_over_tls(deployment: Deployment, client: Client) -> None:
    deadline_s = time.monotonic() + 120
    while not (len(nodes := client.nodes()) == 2 and all(n.lease_state == "ready" for n in nodes)):
        logs = "\n".join(p.read_text()[-1500:] for p in deployment.folder.glob("*.log"))
        assert time.monotonic() < deadline_s, f"{nodes}\n{logs}"
        time.sleep(0.5)
    assert {len(node.devices) for node in nodes} == {2}


def test_the_client_service(deployment: Deployment) -> None:
    done = deployment.run("fallow", "nodes", "--json")
    assert done.returncode == 0, done.stderr
    assert {node["id"] for node in json.loads(done.stdout)} == {"agent-1", "agent-2"}


def test_bootstrapping_again_changes_no_secret(deployment: Deployment) -> None:
    before = {p: p.read_bytes() for p in (deployment.folder / "secrets").rglob("*") if p.is_file()}
    again = deployment.run(*deployment.command("bootstrap"))
    assert again.returncode == 0, again.stderr
    assert before == {p: p.read_bytes() for p in (deployment.folder / "secrets").rglob("*") if p.is_file()}


def test_without_the_authority_there_is_no_way_in(deployment: Deployment) -> None:
    with Client(f"localhost:{deployment.ports['8700']}", "t") as plain, pytest.raises((Unreachable, RefusedError)):
        plain.jobs()


def test_a_wrong_token_is_refused_over_tls(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALLOW_TLS_CA", str(deployment.folder / "secrets" / "user" / "ca.pem"))
    with Client(f"localhost:{deployment.ports['8700']}", "fallow-user-wrong") as stranger:
        with pytest.raises(FallowError) as caught:
            stranger.jobs()
        assert caught.value.exit_code == 4
