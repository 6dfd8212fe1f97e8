"""Kills what a runner's command left when the runner is gone, even by SIGKILL. Run as a script by the runner.

It reads lines: the process group of the command that begins, or 0 when it has ended; the end of input is the runner's
end. It is no child of the runner, since Ray kills an actor's children with it, and their own children not.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Leave the parent, then remember the running command; at the end of input, SIGKILL its process group."""
    if os.fork():
        return
    group = 0
    for line in sys.stdin:
        group = int(line)
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
