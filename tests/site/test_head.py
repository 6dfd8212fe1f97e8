"""The Ray head and the site's command line: found again, started anew, refused, stopped without a trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.site.head import HEAD_SETTINGS, HeadFailed, RayHead
from runtime.site.processes import birth, boot, session_members
from tests.site.real_site import RealSite
from tests.site.stand_in import StandIn


def site_command(folder: Path, *more: str, scheduler: str = "127.0.0.1:1") -> list[str]:
    token = folder / "token"
    token.write_text("fallow-site-x")
    command = [sys.executable, "-m", "runtime", "site", "--name", "plain", "--dir", str(folder / "site")]
    return [*command, "--token-file", str(token), "--scheduler", scheduler, *more]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def is_gone(path: str) -> bool:
    return not os.path.exists(path)


@pytest.mark.slow
async def test_a_dead_head_is_replaced_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    scheduler = StandIn()
    await scheduler.start()
    site = RealSite(tmp_path, scheduler)
    first = await site.ready()
    head = site.head()
    assert (tmp_path / "head.json").stat().st_mode & 0o077 == 0, "it holds the token"
    os.killpg(head["pid"], signal.SIGKILL)
    await scheduler.until(lambda: len(scheduler.hellos) > 1, 120)
    second = scheduler.hellos[-1]
    assert second.ray_token != first.ray_token, "raylets of the old cluster must not be taken for the new one's"
    replaced = site.head()
    assert is_gone(head["temp_dir"])
    assert await site.stop() == 0, site.log.read_text()
    assert session_members(replaced["pid"]) == []
    assert is_gone(replaced["temp_dir"])
    assert not (tmp_path / "head.json").exists()
    await scheduler.stop()


ASK_ON_HEAD = """
import asyncio, sys, time
from pathlib import Path
from runtime.site.head import RayHead
from runtime.site.ray_actors import RayActors, head_node
from runtime.site.ray_driver import connect

class Endpoint:
    def ask(self):
        return "here"

async def main():
    connect(RayHead(Path(sys.argv[1]), "127.0.0.1").start())
    actors = RayActors(lambda lease: "", head_node())
    endpoint = await actors.start_on_head("endpoint", Endpoint)
    until = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until:
        assert await endpoint.ask.remote() == "here"
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_machine_short_of_memory_does_not_lose_the_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends workers of a machine that is nearly full; on the head that is the endpoint, with all of its streams."""
    monkeypatch.setitem(HEAD_SETTINGS, "RAY_memory_usage_threshold", "0.01")  # so that every machine is full
    ray_head = RayHead(tmp_path, "127.0.0.1")
    head = ray_head.start()
    try:
        looks_s = 10 * 0.25  # ten looks of Ray's
        done = run([sys.executable, "-c", ASK_ON_HEAD, str(tmp_path), str(looks_s)])
    finally:
        ray_head.stop(head)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
async def test_a_wrong_token_ends_the_site_with_status_4(tmp_path: Path) -> None:
    scheduler = StandIn()
    await scheduler.start()
    site = RealSite(tmp_path, scheduler, token="fallow-site-wrong")
    process = site.start()
    status = await asyncio.to_thread(process.wait, 120)
    assert status == 4, site.log.read_text()
    assert "no such token: create one with `fallow token create`" in site.log.read_text()
    assert not (tmp_path / "head.json").exists()
    await scheduler.stop()


@pytest.mark.slow
def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(site_command(tmp_path, "--ray-port", str(port)))
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_bad_usage_names_what_is_wrong(tmp_path: Path) -> None:
    done = run(site_command(tmp_path, scheduler="nowhere"))
    assert done.returncode == 2
    assert "'nowhere' is not HOST:PORT" in done.stderr
    command = site_command(tmp_path)
    (tmp_path / "token").unlink()
    done = run(command)
    assert done.returncode == 2
    assert str(tmp_path / "token") in done.stderr


def test_a_temporary_folder_with_a_long_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 60)
    with pytest.raises(HeadFailed, match="set TMPDIR to a short one"):
        RayHead(tmp_path, "127.0.0.1").start()


def test_a_head_that_ends_at_once_is_tried_again_on_another_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ports: list[int] = []

    def spawn(self: RayHead, port: int, token: str, temp_dir: str) -> subprocess.Popen[bytes]:
        ports.append(port)
        (tmp_path / "head.log").write_text("address already in use")
        return subprocess.Popen(["false"], start_new_session=True)

    monkeypatch.setattr(RayHead, "_spawn", spawn)
    with pytest.raises(HeadFailed, match="address already in use"):
        RayHead(tmp_path, "127.0.0.1").start()
    assert len(ports) == 3
    assert caplog.text.count("trying again on another port") == 2
    assert not (tmp_path / "head.json").exists()


def test_a_spoiled_head_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "head.json").write_text("{")
    with pytest.raises(HeadFailed, match=r"head\.json cannot be read"):
        RayHead(tmp_path, "127.0.0.1").start()


def test_another_process_of_the_same_id_is_not_the_head(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    saved = {"address": "127.0.0.1:1", "token": "t", "pid": stranger.pid, "temp_dir": str(tmp_path / "t")}
    (tmp_path / "head.json").write_text(json.dumps({**saved, "born": f"{boot()}/1", "ray_version": "2"}))
    ray_head = RayHead(tmp_path, "127.0.0.1")
    known = ray_head.read()
    assert known is not None
    assert not ray_head.is_alive(known)
    ray_head.stop(known)
    assert birth(stranger.pid), "it was never ours to kill"
    assert ray_head.is_alive(replace(known, born=birth(stranger.pid) or ""))
    ray_head.stop(replace(known, born=birth(stranger.pid) or ""))
    assert birth(stranger.pid) is None
    stranger.wait()
