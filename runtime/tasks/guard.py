"""Kills what a runner's commands left when the runner is gone, even by SIGKILL. Run as a script by the runner.

The runner says `+GROUP` when it starts a command and `-GROUP` when it has ended; the end of input is the runner's end.
It is no child of the runner, since Ray kills an actor's children with it, and their own children not.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Leave the parent, then keep the list of process groups; at the end of input, SIGKILL them."""
    if os.fork():
        return
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
