"""Commands about tokens and the books."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from fallow.cli import output
from fallow.cli.jobs import client
from fallow.cli.output import JsonFlag


class Role(StrEnum):
    """What a token may do."""

    ADMIN = "admin"
    USER = "user"
    AGENT = "agent"
    SITE = "site"
    VIEWER = "viewer"


class By(StrEnum):
    """What the books can be read by."""

    JOB = "job"
    NODE = "node"
    SITE = "site"
    USER = "user"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    token = typer.Typer(help="Tokens: who may do what.", no_args_is_help=True)
    token.command("create")(create)
    token.command("list")(list_tokens)
    token.command("revoke")(revoke)
    app.add_typer(token, name="token")
    app.command()(usage)


def create(
    name: Annotated[str, typer.Option(help="A name to know it by, and to revoke it.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    valid_s: Annotated[float, typer.Option(min=0, help="Seconds until it expires; 0: never.")] = 0.0,
    json: JsonFlag = False,
) -> None:
    """Make a token and print it: it is shown this once."""
    with client() as c:
        secret = c.create_token(name, role.value, valid_s)
    output.print_json({"name": name, "role": role.value, "token": secret}) if json else print(secret)


def list_tokens(json: JsonFlag = False) -> None:
    """List tokens; their secrets are kept nowhere."""
    with client() as c:
        found = c.tokens()
    if json:
        output.print_json(found)
        return
    rows = [
        (t.name, t.role, output.clock_time(t.created_s), output.clock_time(t.expires_s) if t.expires_s else "never")
        for t in found
    ]
    output.table(("NAME", "ROLE", "CREATED", "EXPIRES"), rows)


def revoke(name: Annotated[str, typer.Argument(metavar="NAME")], json: JsonFlag = False) -> None:
    """Make a token useless."""
    with client() as c:
        c.revoke_token(name)
    output.print_json({"revoked": name}) if json else print(f"{name} is revoked", file=sys.stderr)


def usage(
    by: Annotated[By, typer.Option(help="One row for each ...")] = By.JOB,
    json: JsonFlag = False,
) -> None:
    """Show what became of all borrowed device time, in device-seconds."""
    with client() as c:
        books = c.usage(by.value)
    output.print_json(books) if json else output.usage_table(books, by.value)
