"""Commands that start processes: a whole Fallow on this machine, the demo, or one part of a real one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from fallow.cli import output
from fallow.cli.output import JsonFlag

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(demo)
    app.command("scheduler", context_settings=_PASS_ON)(scheduler)
    app.command("site", context_settings=_PASS_ON)(site)
    app.command("agent", context_settings=_PASS_ON)(agent)
    app.command("pilots", context_settings=_PASS_ON)(pilots)
    app.command("simulate", context_settings=_PASS_ON)(simulate)


def up(
    nodes: Annotated[int, typer.Option(min=1, max=64, help="How many nodes; each lends a core of this machine.")] = 4,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once everything runs.")] = False,
    json: JsonFlag = False,
) -> None:
    """Start a whole Fallow on this machine: scheduler, site and agents."""
    from fallow.local_cluster import LocalCluster

    cluster = LocalCluster(nodes=nodes)
    cluster.start(progress=lambda what: print(f"Starting {what} ...", file=sys.stderr))
    if json:
        output.print_json({"address": cluster.address, "page": cluster.page, "nodes": cluster.nodes})
    else:
        print(f"Fallow is up with {nodes} nodes.\nStatus page  {cluster.page}\nScheduler    {cluster.address}")
        print(f"Logs         {cluster.home / 'logs'}", flush=True)
    if detach:
        return
    print("Ctrl-C stops it.", file=sys.stderr)
    wait_for_stop()
    print("Stopping ...", file=sys.stderr)
    cluster.stop()


def wait_for_stop() -> None:
    """Return on Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def down(json: JsonFlag = False) -> None:
    """Stop what `fallow up` started. Jobs and books are kept for the next `fallow up`."""
    from fallow.context import home_dir
    from fallow.layout import saved_layout
    from fallow.local_cluster import LocalCluster

    running = saved_layout(home_dir()) is not None
    if running:
        LocalCluster().stop()
    if json:
        output.print_json({"stopped": running})
    else:
        print("Stopped." if running else f"Nothing runs in {home_dir()}.")


def demo(
    data: Annotated[Path | None, typer.Option(help="A UTF-8 text file to train on, in any language.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the summary to this file.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder for everything it makes; a new one if left out.")] = None,
) -> None:
    """Show all of it on this machine: train, lose nodes, get them back, serve the result. Takes some minutes."""
    from fallow.demo.main import run_demo

    raise typer.Exit(run_demo(data=data, json_file=json, home=home))


def scheduler() -> None:
    """Run the central service (see `fallow scheduler --help`)."""
    _become("scheduler")


def site() -> None:
    """Run a site's process, beside its Ray head (see `fallow site --help`); with `--slurm FILE`, its pilots too."""
    if "--slurm" in sys.argv:
        _start_pilots(sys.argv)
    _become("runtime", "site")


def agent() -> None:
    """Lend this machine: run its node agent (see `fallow agent --help`)."""
    _become("agents")


def simulate() -> None:
    """Replay a trace of idle machines through the scheduler (see `fallow simulate --help`)."""
    _become("scheduler.simulation")


def pilots() -> None:
    """Harvest the idle nodes of a machine with a batch system (see `fallow pilots --help`)."""
    _become("agents", "pilots")


_SHARED_WITH_PILOTS = {
    "--name": "--site",
    "--scheduler": "--scheduler",
    "--token-file": "--token-file",
    "--tls-ca": "--tls-ca",
}


def _start_pilots(words: list[str]) -> None:
    """Start `fallow pilots` as a child of what becomes the site, and take `--slurm FILE` out of `words`."""
    from fallow.errors import UsageError

    place = words.index("--slurm")
    if place + 1 >= len(words) or words[place + 1].startswith("-"):
        raise UsageError("--slurm needs the file with the settings of pilots.", "See docs/LENDING.md for one.")
    config = words[place + 1]
    del words[place : place + 2]
    pairs = list(itertools.pairwise(words))
    shared = [
        word for name, value in pairs if name in _SHARED_WITH_PILOTS for word in (_SHARED_WITH_PILOTS[name], value)
    ]
    command = [sys.executable, "-m", "agents", "pilots", "--slurm", "--config", config, *shared]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when the site ends, however it ends: then all pilots are withdrawn."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)


def _become(*module_and_arguments: str) -> None:
    rest = sys.argv[2:]
    os.execv(sys.executable, [sys.executable, "-m", *module_and_arguments, *rest])
