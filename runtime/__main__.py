"""`python -m runtime site ...`: the process that runs one site."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

from runtime.site import ray_actors, ray_driver
from runtime.site.files import Folder, FolderTaken, write_whole
from runtime.site.head import Head, HeadFailed, RayHead
from runtime.site.session import Peer, SessionRefused
from runtime.site.site import HeadDied, Site, SiteSettings

log = logging.getLogger("runtime")

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 4


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status: 0 done, 1 failed, 2 usage, 4 refused by the scheduler."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        folder = Folder(options.dir)
        peer = _peer(options)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}: name a file to read, a folder to write to", file=sys.stderr)
        return USAGE
    except FolderTaken as error:
        print(error, file=sys.stderr)
        return FAILED
    head = RayHead(folder.path, options.address, options.ray_port)
    settings = SiteSettings(options.name, folder.path, folder.instance, peer)
    return _run(head, settings, options.ready_file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime", description="What runs beside and on borrowed nodes.")
    commands = parser.add_subparsers(required=True)
    site = commands.add_parser("site", help="run a site: its Ray head, and its session with the scheduler")
    site.add_argument("--name", required=True, help="name of the site")
    site.add_argument("--scheduler", required=True, metavar="HOST:PORT", type=_address, help="the scheduler's address")
    site.add_argument("--token-file", required=True, type=Path, help="file with a token of role 'site'")
    site.add_argument("--dir", required=True, type=Path, help="folder for this site's state")
    site.add_argument("--ray-port", type=_port, default=0, help="port of the Ray head; any free one if left out")
    site.add_argument("--address", default="127.0.0.1", help="where nodes reach this machine (default 127.0.0.1)")
    site.add_argument("--ready-file", type=Path, help="file to write once the session is open")
    site.add_argument("--tls-ca", type=Path, help="certificate of the authority that signed the scheduler's")
    site.add_argument("--tls-cert", type=Path, help="this site's own certificate, if the scheduler asks for one")
    site.add_argument("--tls-key", type=Path, help="its key")
    return parser


def _peer(options: argparse.Namespace) -> Peer:
    """The scheduler as the options name it. Raises OSError for a file that cannot be read."""
    for file in (options.tls_ca, options.tls_cert, options.tls_key):
        if file:
            file.read_bytes()
    token = options.token_file.read_text().strip()
    return Peer(options.scheduler, token, options.tls_ca, options.tls_cert, options.tls_key)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _run(ray_head: RayHead, settings: SiteSettings, ready_file: Path | None) -> int:
    try:
        head = ray_head.start()
    except (HeadFailed, OSError) as error:
        print(f"site {settings.name} cannot start: {error}", file=sys.stderr)
        return FAILED
    _say_who_can_reach(head)
    try:
        asyncio.run(_until_told(ray_head, head, settings, ready_file))
    except (SessionRefused, ConnectionError) as error:
        print(f"site {settings.name}: {error}", file=sys.stderr)
        ray_driver.disconnect()  # while the head answers: Ray kills a driver whose head has gone
        if not ray_head.was_found:
            ray_head.stop(head)
        return REFUSED if isinstance(error, SessionRefused) else FAILED
    ray_actors.stop_all()
    ray_driver.disconnect()
    ray_head.stop(head)
    log.info("site %s has stopped", settings.name)
    return DONE


async def _until_told(ray_head: RayHead, head: Head, settings: SiteSettings, ready_file: Path | None) -> None:
    """Run the site until SIGTERM or SIGINT."""
    site = Site(settings, head)
    running = asyncio.ensure_future(site.run(lambda: ray_head.is_alive(head), lambda: _write_ready(head, ready_file)))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except HeadDied as error:
        log.error("%s: beginning anew", error)
        _begin_anew()
    except asyncio.CancelledError:
        log.info("told to stop: the site's jobs lose their workers here, the scheduler keeps the jobs")


def _say_who_can_reach(head: Head) -> None:
    host = head.address.rpartition(":")[0]
    if host in ("127.0.0.1", "localhost", "::1"):
        log.info("Ray listens on every interface of this machine even so; only who has the site's Ray token gets in")


def _write_ready(head: Head, ready_file: Path | None) -> None:
    log.info("ready")
    if ready_file:
        write_whole(ready_file, json.dumps({"ray_address": head.address, "pid": os.getpid(), "head_pid": head.pid}))


def _begin_anew() -> None:
    """Become a new process with the same command line: a Ray driver cannot outlive its cluster's head.

    Threads that wait for the dead head in vain are left behind, hence from inside the event loop.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "runtime", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
