"""`python -m agents pilots ...`, or `fallow pilots`."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import os
import signal
import stat
import sys
from pathlib import Path

from agents.batch import BatchSystem
from agents.batch.script import PilotScript
from agents.connection import Peer
from agents.folder import prepare
from agents.pilots import errand, settings
from agents.pilots.demand import Demand, NotAllowed
from agents.pilots.errand import Errand
from agents.pilots.pacing import Pace
from agents.pilots.pilots import Pilots, Plan
from agents.pilots.policy import Bag
from agents.pilots.settings import InvalidSettings, Settings

FAILED, USAGE, REFUSED = 1, 2, 4

_OPTIONS = {
    "site": "name of the site that pilots belong to",
    "scheduler": "HOST:PORT of Fallow's scheduler",
    "token_file": "holds a token of role site, user or viewer",
    "agent_token_file": "holds a token of role agent; readable by its user alone",
    "dir": "folder for pilots' settings and logs, shared with the nodes",
    "tls_ca": "certificate authority of the scheduler; turns encryption on",
    "place.partition": "partition (Slurm) or queue (OpenPBS)",
    "place.qos": "quality of service",
    "place.account": "account to charge",
    "place.constraint": "features that nodes must have",
    "bag.nodes": "nodes to take at most",
    "bag.reserve": "nodes never to ask for",
    "bag.pending": "pilots that may wait at a time",
    "bag.each": "pilots of one length that may wait at a time",
    "bag.learn": "use so many of the lengths, chosen by idle times seen (0: all)",
    "bag.lengths_min": "lengths in minutes, such as 2,8,34",
}


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="fallow pilots",
        description="Harvests the idle nodes of a machine with a batch system: submits and withdraws pilots, as the "
        "user that runs it. Stop it with Ctrl-C or SIGTERM: it withdraws all of them.",
        epilog="Options are set in the file too, where there are more of them: see docs/LENDING.md.",
    )
    made.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML; options go before them")
    systems = made.add_mutually_exclusive_group()
    for name in ("slurm", "openpbs", "shell"):
        systems.add_argument(f"--{name}", dest="system", action="store_const", const=name)
    for name, meaning in _OPTIONS.items():
        made.add_argument(f"--{name.rpartition('.')[2].replace('_', '-')}", dest=name, help=meaning)
    made.add_argument(
        "--status", action="store_true", help="print what the process that uses --dir last noted, and end"
    )
    return made


def main(arguments: list[str]) -> int:
    """Run until told to stop. The exit status: 0 stopped, 1 failed, 2 misused, 4 refused by the scheduler."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if options.status and options.dir:
        return _print_status(Path(options.dir))
    try:
        told = settings.read(options.config, _given(options))
        if options.status:
            return _print_status(told.dir)
        _check_token(told.agent_token_file)
        system = batch_system(told)
        lock = _prepare(told)
    except InvalidSettings as problem:
        print(f"fallow pilots: {problem}", file=sys.stderr)
        return USAGE
    try:
        asyncio.run(_run(told, system))
    except NotAllowed as refusal:
        print(f"fallow pilots: --token-file: {refusal}", file=sys.stderr)
        return REFUSED
    finally:
        os.close(lock)
    return 0


def _given(options: argparse.Namespace) -> dict[str, object]:
    given = {name: value for name in ("system", *_OPTIONS) if (value := getattr(options, name)) is not None}
    if "bag.lengths_min" in given:
        given["bag.lengths_min"] = str(given["bag.lengths_min"]).split(",")
    return given


def _print_status(folder: Path) -> int:
    try:
        print((folder / "status.json").read_text(), end="")
    except OSError as error:
        print(f"fallow pilots: {folder}/status.json: {error.strerror}: has it run with this --dir?", file=sys.stderr)
        return FAILED
    return 0


def _check_token(path: Path) -> None:
    """Raises InvalidSettings for a token that others can read: every pilot reads it, on every node."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidSettings(f"--agent-token-file {path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InvalidSettings(f"--agent-token-file {path}: others can read it; run: chmod 600 {path}")


def _prepare(told: Settings) -> int:
    """Make the folder and lock it. Raises InvalidSettings."""
    try:
        lock = prepare(told.dir.absolute())
        (told.dir / "log").mkdir(exist_ok=True)
        told.token_file.read_bytes()
    except BlockingIOError as error:
        raise InvalidSettings(f"--dir {told.dir}: another `fallow pilots` uses it") from error
    except OSError as error:
        raise InvalidSettings(f"{error.filename or told.dir}: {error.strerror}") from error
    return lock


async def _run(told: Settings, system: BatchSystem) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    demand = Demand(peer(told, told.token_file), told.site, told.devices_per_node)
    try:
        await Pilots(system, demand, plan(told)).run(stop)
    finally:
        await demand.close()


def peer(told: Settings, token_file: Path) -> Peer:
    """The scheduler, as this process reaches it."""
    return Peer(told.scheduler, token_file, told.tls_ca, told.tls_cert, told.tls_key)


def plan(told: Settings) -> Plan:
    """The settings as the process uses them."""
    bag = told.bag
    lengths_s = tuple(minutes * 60 for minutes in bag.lengths_min)
    return Plan(
        folder=told.dir.absolute(),
        errand=Errand(
            site=told.site,
            scheduler=told.scheduler,
            token_file=str(told.agent_token_file.absolute()),
            notice_s=told.notice_s or 0.0,
            agent=_agent_options(told),
            temp_dir=told.agent.temp_dir,
        ),
        bag=Bag(lengths_s, bag.each, bag.pending, bag.nodes, bag.reserve),
        learn=bag.learn,
        ask_s=told.ask_s,
        pace=Pace(told.quick_s, told.quiet_s, told.patience_s),
        notice_s=told.notice_s,
    )


def _agent_options(told: Settings) -> tuple[str, ...]:
    agent = told.agent
    named: dict[str, object] = {
        "devices": agent.devices,
        "cores": agent.cores,
        "memory-bytes": agent.memory_bytes,
        "object-store-bytes": agent.object_store_bytes,
        "ray": agent.ray,
        "address": agent.address,
        "tls-ca": told.tls_ca and told.tls_ca.absolute(),
        "tls-cert": told.tls_cert and told.tls_cert.absolute(),
        "tls-key": told.tls_key and told.tls_key.absolute(),
    }
    words = [word for name, value in named.items() if value for word in (f"--{name}", str(value))]
    if told.system == "shell":
        words += ["--source", "host"]  # nobody else says whether the host is idle
    return tuple(words)


def batch_system(told: Settings) -> BatchSystem:
    """The batch system that the settings name."""
    place, folder = told.place, told.dir.absolute()
    command = (told.python or sys.executable, "-m", "agents", "pilot", "--config", str(folder / errand.NAME))
    if told.system == "shell":
        from agents.batch.shell import Shell

        if not place.hosts:
            raise InvalidSettings("place.hosts: is missing; name the hosts to use")
        return Shell(place.hosts, place.start, command, folder / "log", os.environ)
    script = PilotScript(told.job_name, getpass.getuser(), command, folder, told.warning_s, place.environment)
    if told.system == "openpbs":
        from agents.batch.openpbs import OpenPbs, PbsPlace

        return OpenPbs(PbsPlace(place.partition, place.account, place.options), script, os.environ)
    from agents.batch.slurm import Slurm, SlurmPlace

    where = SlurmPlace(place.partition, place.qos, place.account, place.constraint, place.exclusive, place.options)
    return Slurm(where, script, os.environ)
