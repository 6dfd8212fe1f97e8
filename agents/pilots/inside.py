"""Inside a pilot: `python -m agents pilot --config FILE --length-s S`. An agent in a folder that goes when it ends."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import MutableMapping
from pathlib import Path

from agents.pilots import demand, errand
from agents.pilots.errand import Errand

log = logging.getLogger("fallow.pilot")

USAGE = 2
LATEST_START_S = 120.0
"""The longest that a batch system takes from a job's start to its first command; a greater difference is a clock's."""

_LOOK_S = 5.0
_LOOKS_WITHOUT_WORK = 2
_SETTLED_S = 120.0
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "FALLOW_PILOT")
_NODE_VARIABLES = ("SLURMD_NODENAME", "FALLOW_NODE")
_END = "FALLOW_END_TIME"


def main(arguments: list[str]) -> int:
    """Run a pilot's agent to its end, and leave nothing behind. The exit status of the agent."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        task = errand.read(options.config)
    except (OSError, ValueError) as error:
        print(f"fallow pilot: {error}", file=sys.stderr)
        return USAGE
    if not errand.is_wanted(options.config.parent):
        print("fallow pilot: there is no work any more", file=sys.stderr)
        return 0
    note_end(os.environ, options.length_s, time.time())
    root = Path(task.temp_dir or tempfile.gettempdir())
    clear_up(root, time.time())
    folder = root / f"{_prefix()}{_job()}"
    threading.Thread(target=_leave_without_work, args=(options.config.parent,), daemon=True).start()
    if options.leave_on_eof:
        threading.Thread(target=_leave_on_eof, daemon=True).start()
    try:
        return _run(task, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m agents pilot", description="The agent inside a pilot.")
    made.add_argument("--config", required=True, type=Path, help="written by `fallow pilots`")
    made.add_argument("--length-s", required=True, type=float, help="time limit of this pilot")
    made.add_argument("--leave-on-eof", action="store_true", help="end when standard input does: it is the reclaim")
    return made


def _run(task: Errand, folder: Path) -> int:
    from agents.__main__ import main as run_agent

    node = next((os.environ[name] for name in _NODE_VARIABLES if os.environ.get(name)), socket.gethostname())
    return run_agent(
        [
            *("--node", demand.node_name(task.site, node), "--site", task.site, "--scheduler", task.scheduler),
            *("--token-file", task.token_file, "--dir", str(folder), "--source", "pilot", "--look-s", "1"),
            *("--grace-s", f"{task.notice_s:g}", *task.agent),
        ]
    )


def note_end(environment: MutableMapping[str, str], length_s: float, now_s: float) -> None:
    """Put the end of this pilot, on this node's clock, into the environment, where the agent's `pilot` source finds it.

    SLURM_JOB_END_TIME comes from the controller's clock. It holds as long as it agrees with the pilot's length but
    for the time that a start takes; where it does not, the two clocks differ, and where there is none (older
    versions), the length alone is what is known.
    """
    by_length_s = now_s + length_s
    said = environment.pop("SLURM_JOB_END_TIME", "")
    ends_s = by_length_s
    if said.isdigit():
        late_s = by_length_s - float(said)
        if -1.0 <= late_s <= LATEST_START_S:
            ends_s = min(ends_s, float(said))
        else:
            log.warning("this node's clock and the batch system's differ by about %.0f s; the length counts", late_s)
    environment[_END] = f"{ends_s:.3f}"


def _prefix() -> str:
    return f"fwp{os.getuid()}-"


def _job() -> str:
    return next((os.environ[name] for name in _JOB_VARIABLES if os.environ.get(name)), str(os.getpid()))


def clear_up(root: Path, now_s: float) -> None:
    """Remove what pilots of this user left on this node that were killed: folders that no agent has locked."""
    from agents import raylet

    for folder in root.glob(f"{_prefix()}*"):
        try:
            if now_s - folder.stat().st_mtime < _SETTLED_S and not (folder / "agent.lock").exists():
                continue  # one that just begins
            with open(folder / "agent.lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                raylet.clear(folder)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue


def _leave_without_work(folder: Path) -> None:
    """End this pilot once there is no work any more, should `fallow pilots` not be able to withdraw it."""
    missing = 0
    while missing < _LOOKS_WITHOUT_WORK:
        time.sleep(_LOOK_S)
        missing = 0 if errand.is_wanted(folder) else missing + 1
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_on_eof() -> None:
    """End this pilot once whoever started it lets go of its standard input."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
