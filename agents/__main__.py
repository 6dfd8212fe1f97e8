"""The node agent's process: `python -m agents`, or `fallow agent`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agents import folder
from agents.agent import Agent, Node, read_clock
from agents.connection import Peer, Refused
from agents.probes import Device, Probe, ProbeFailed, find
from agents.probes.cpu import CpuProbe
from agents.probes.nvidia import NvidiaProbe
from agents.probes.people import OtherUsers
from agents.raylet import RayletOptions
from agents.spare import Source
from agents.spare.always import Always
from agents.spare.hysteresis import Thresholds
from agents.spare.pilot import Pilot

USAGE, REFUSED = 2, 4
_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,48}[A-Za-z0-9])?"


class Misuse(Exception):
    """The command line cannot be carried out; the message names the option and the remedy."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="fallow agent",
        description="Lends this node's spare devices, and gives them back the moment the owner asks: by SIGTERM, by "
        "`fallow reclaim`, or because a source says so.",
    )
    need = made.add_argument_group("where it belongs")
    need.add_argument("--node", required=True, help="name of this node, unique at the scheduler")
    need.add_argument("--site", required=True, help="the site that it belongs to")
    need.add_argument("--scheduler", required=True, metavar="HOST:PORT")
    need.add_argument("--token-file", required=True, type=Path, help="holds a token of role agent")
    need.add_argument("--dir", required=True, type=Path, help="folder of this agent alone; keep its path short")
    need.add_argument("--address", default="", help="where other nodes reach this one (default: found by itself)")
    need.add_argument("--tls-ca", type=Path, help="certificate authority of the scheduler; turns encryption on")
    need.add_argument("--tls-cert", type=Path, help="certificate of this agent")
    need.add_argument("--tls-key", type=Path, help="its key")
    need.add_argument("--ready-file", type=Path, help="written once the scheduler has accepted this agent")
    _add_devices(made.add_argument_group("what it lends"))
    _add_sources(made.add_argument_group("when it lends"))
    return made


def _add_devices(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--probe", choices=("auto", "nvidia", "cpu"), default="auto", help="auto: GPUs if there are any, else cores")
    add("--devices", type=_count, default=0, help="lend cores, in so many groups (default 1)")
    add("--cores", type=_count, default=0, help="lend cores, so many a group (default: all, shared out)")
    add("--memory-bytes", type=_count, default=0, help="memory of a group (default: half of the machine, shared out)")
    add("--affinity", type=_cores, default=frozenset(), metavar="0-3,8", help="pin what is started to these cores")
    add("--object-store-bytes", type=_count, default=80_000_000, help="shared memory for Ray (default 80 MB)")
    add("--ray", default="", metavar="PATH", help="the ray executable (default: beside this Python, else on PATH)")


def _add_sources(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    names = ("host", "pilot", "schedule", "command", "always")
    add("--source", choices=names, action="append", help="who judges; several must agree (default: host)")
    add("--grace-s", type=_seconds, default=30.0, help="notice that the owner gives (default 30)")
    add("--look-s", type=_seconds, help="seconds between two looks (default 0.5 with host alone, else 2)")
    add("--others", choices=("all", "users"), default="all", help="host: whose use of cores counts (default all)")
    add("--busy-above", type=float, default=0.25, help="host: others' part of a device that makes it busy")
    add("--spare-below", type=float, default=0.10, help="host: below this it is spare again")
    add("--busy-after-s", type=_seconds, default=1.0, help="host: for so long without a break")
    add("--spare-after-s", type=_seconds, default=60.0, help="host: for so long without a break")
    add("--window", action="append", default=[], help='schedule: such as "mon-fri 19:00-07:00"; may be repeated')
    add("--timezone", default="", help="schedule: such as Europe/Berlin (default: the machine's)")
    add("--schedule-file", type=Path, help="schedule: YAML with timezone and windows")
    add("--command", help="command: a program that prints JSON about what is spare")
    add("--command-time-out-s", type=_seconds, default=10.0)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"must be seconds from 0 on, not {text}")
    return value


def _cores(text: str) -> frozenset[int]:
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    if not cores or not cores <= os.sched_getaffinity(0):
        raise argparse.ArgumentTypeError(f"must be cores that this process may use, not {text}")
    return frozenset(cores)


def main(arguments: list[str] | None = None) -> int:
    """Run an agent until it is told to stop. The exit status: 0 stopped, 2 misused, 4 refused by the scheduler.

    `pilots` as the first word runs the process that submits pilots instead, `pilot` the inside of one of them.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["pilots"]:
        from agents.pilots import command_line

        return command_line.main(arguments[1:])
    if arguments[:1] == ["pilot"]:
        from agents.pilots import inside

        return inside.main(arguments[1:])
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        agent, lock = build(options)
    except Misuse as problem:
        print(f"fallow agent: {problem}", file=sys.stderr)
        return USAGE
    try:
        asyncio.run(agent.run(_ready(options)))
    except Refused as refusal:
        print(f"fallow agent: {refusal}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        print(f"fallow agent: --dir {options.dir}: {error}", file=sys.stderr)
        return USAGE
    finally:
        os.close(lock)
    return 0


def build(options: argparse.Namespace) -> tuple[Agent, int]:
    """An agent as the options say, and its folder's lock. Raises Misuse."""
    _check_names(options)
    probe, devices, failures = _probe(options)
    sources = _sources(options, probe, devices)
    path = options.dir.absolute()
    address = options.address or own_address(options.scheduler)
    node = Node(options.node, options.site, address, _version(), probe, devices, failures)
    peer = Peer(options.scheduler, options.token_file, options.tls_ca, options.tls_cert, options.tls_key)
    in_batch_job = "pilot" in (options.source or ())
    raylets = RayletOptions(
        options.node, path, options.address, options.ray, options.object_store_bytes, options.affinity, in_batch_job
    )
    lock = _lock(path)
    return Agent(node, sources, peer, raylets, options.grace_s, _look_s(options)), lock


def _look_s(options: argparse.Namespace) -> float:
    """A person at the machine is to be seen at once; a program of the owner's is not to be run twice a second."""
    if options.look_s is not None:
        return float(options.look_s)
    return 0.5 if (options.source or ["host"]) == ["host"] else 2.0


def _check_names(options: argparse.Namespace) -> None:
    for name in ("node", "site"):
        if not re.fullmatch(_NAME, getattr(options, name)):
            raise Misuse(
                f"--{name} {getattr(options, name)!r}: use letters, digits and, inside, '.', '_' and '-'; at most 50"
            )
    if not re.fullmatch(r".+:\d{1,5}", options.scheduler):
        raise Misuse(f"--scheduler {options.scheduler!r}: write HOST:PORT")
    for name in ("token_file", "tls_ca", "tls_cert", "tls_key"):
        path = getattr(options, name)
        if path is not None and not os.access(path, os.R_OK):
            raise Misuse(f"--{name.replace('_', '-')} {path}: there is no such file, or it cannot be read")


def _probe(options: argparse.Namespace) -> tuple[Probe, tuple[Device, ...], tuple[str, ...]]:
    others = OtherUsers(os.getuid()) if options.others == "users" else None
    cpu = CpuProbe(options.devices or 1, options.cores, options.memory_bytes, others)
    by_cores = options.probe == "cpu" or (options.probe == "auto" and (options.devices or options.cores))
    probes: tuple[Probe, ...] = (cpu,) if by_cores else (NvidiaProbe(), cpu)
    try:
        return find(probes[:1] if options.probe == "nvidia" else probes)
    except ProbeFailed as failure:
        raise Misuse(f"no devices to lend: {failure}") from failure


def _sources(options: argparse.Namespace, probe: Probe, devices: tuple[Device, ...]) -> list[Source]:
    ids = tuple(device.id for device in devices)
    makers: dict[str, Callable[[], Source]] = {
        "host": lambda: _host(options, probe, ids),
        "pilot": lambda: Pilot(ids, os.environ, read_clock()),
        "schedule": lambda: _schedule(options, ids),
        "command": lambda: _command(options, ids),
        "always": lambda: Always(ids),
    }
    return [makers[name]() for name in dict.fromkeys(options.source or ["host"])]


def _host(options: argparse.Namespace, probe: Probe, ids: tuple[str, ...]) -> Source:
    from agents.spare.host import Host

    try:
        thresholds = Thresholds(options.busy_above, options.spare_below, options.busy_after_s, options.spare_after_s)
    except ValueError as error:
        raise Misuse(f"--busy-above, --spare-below: {error}") from error
    return Host(probe, ids, thresholds)


def _schedule(options: argparse.Namespace, ids: tuple[str, ...]) -> Source:
    from agents.spare.schedule import InvalidSchedule, make_schedule

    try:
        return make_schedule(ids, options.window, options.timezone, options.schedule_file)
    except InvalidSchedule as error:
        raise Misuse(f"--source schedule: {error}") from error


def _command(options: argparse.Namespace, ids: tuple[str, ...]) -> Source:
    import shlex

    from agents.spare.command import Command

    if not options.command:
        raise Misuse("--source command: say which with --command")
    return Command(tuple(shlex.split(options.command)), ids, options.command_time_out_s)


def _lock(path: Path) -> int:
    try:
        return folder.prepare(path)
    except BlockingIOError as error:
        raise Misuse(f"--dir {path}: another agent uses it; stop that one, or give another folder") from error
    except OSError as error:
        raise Misuse(f"--dir {path}: {error.strerror}") from error


def own_address(scheduler: str) -> str:
    """This machine's address on the way to the scheduler; nothing is sent."""
    host, _, port = scheduler.rpartition(":")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as way:
            way.connect(where)
            return str(way.getsockname()[0])
    except OSError:
        return socket.gethostname()


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("fallow")
    except metadata.PackageNotFoundError:
        return "unknown"


def _ready(options: argparse.Namespace) -> Callable[[], None]:
    def write() -> None:
        if options.ready_file:
            said = {"pid": os.getpid(), "node": options.node, "control": str(options.dir.absolute() / "control.sock")}
            fresh = options.ready_file.with_name(f"{options.ready_file.name}.{time.monotonic_ns()}")
            fresh.write_text(json.dumps(said))
            fresh.replace(options.ready_file)

    return write


if __name__ == "__main__":
    sys.exit(main())
