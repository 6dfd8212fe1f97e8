"""Puts the commands together, and turns errors into words on stderr and an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused.
"""

from __future__ import annotations

import os
import sys

import typer

from fallow.cli import access, jobs, local, nodes
from fallow.cli.output import print_error
from fallow.errors import FallowError

app = typer.Typer(
    name="fallow",
    help="Put idle nodes to work on Mixture-of-Experts models, and hand each back the moment its owner asks.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
local.add_to(app)
jobs.add_to(app)
nodes.add_to(app)
access.add_to(app)


def run() -> int:
    """Run the command line and return its exit code."""
    try:
        app()
    except FallowError as error:
        print_error(error.message, error.remedy)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    return 0
