"""Commands about nodes: some for operators, some for the owners of the machines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fallow.cli import output
from fallow.cli.jobs import client
from fallow.cli.output import JsonFlag

if TYPE_CHECKING:
    from collections.abc import Mapping

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="A node's name.")]
DirOption = Annotated[
    Path | None, typer.Option("--dir", help="The agent's --dir, for an agent that `fallow up` did not start.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(nodes)
    app.command()(drain)
    app.command()(reclaim)
    app.command()(lend)


def nodes(site: Annotated[str, typer.Option(help="Only nodes of this site.")] = "", json: JsonFlag = False) -> None:
    """List nodes."""
    with client() as c:
        found = c.nodes(site)
    if json:
        output.print_json(found)
    elif found:
        output.nodes_table(found)
    else:
        print("No nodes. Lend one with: fallow agent --help", file=sys.stderr)


def drain(
    node: Annotated[str, typer.Argument(metavar="[NODE]", help="A node's name; or give --site.")] = "",
    site: Annotated[str, typer.Option(help="All nodes of this site.")] = "",
    grace_s: Annotated[float, typer.Option(min=0, help="Seconds until the node must be empty.")] = 60.0,
    cause: Annotated[str, typer.Option(help="Why, for the event log.")] = "",
    json: JsonFlag = False,
) -> None:
    """Move work off a node, or off a whole site, through the scheduler."""
    if bool(node) == bool(site):
        raise typer.BadParameter("give a NODE or --site, one of the two")
    with client() as c:
        drained = c.drain(node, site, grace_s, cause)
    if json:
        output.print_json({"nodes": drained})
    else:
        print("\n".join(drained) or "Nothing to drain: no node of these is lent.")


def reclaim(
    node: NodeArgument,
    grace_s: Annotated[float, typer.Option(min=0, help="Seconds until the node must be free of us.")] = 10.0,
    dir: DirOption = None,
    json: JsonFlag = False,
) -> None:
    """Take a node back, as its owner. Works on the node itself and needs no scheduler."""
    _say(node, dir, {"command": "reclaim", "grace_s": grace_s}, f"{node} is free of us in at most {grace_s:g} s", json)


def lend(node: NodeArgument, dir: DirOption = None, json: JsonFlag = False) -> None:
    """Lend a node again after a reclaim."""
    _say(node, dir, {"command": "lend"}, f"{node} is lent again", json)


def _say(node: str, folder: Path | None, message: Mapping[str, Any], done: str, json: bool) -> None:
    from fallow.context import home_dir
    from fallow.control import say

    answer = say(folder or home_dir() / node, dict(message))
    output.print_json(answer) if json else print(done)
