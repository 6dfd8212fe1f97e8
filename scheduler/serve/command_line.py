"""`python -m scheduler`: serve, token, db. Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc.server import TlsFiles
from scheduler.serve.addresses import read_address
from scheduler.serve.process import Options, serve
from scheduler.store.database import Database
from scheduler.store.failures import StoreFailed, shown
from scheduler.store.migrate import upgrade
from scheduler.store.tokens import TokenRole, Tokens

_USAGE = ("invalid_",)
_FAILED = ("port_taken",)
_UNREACHABLE = ("database_unreachable",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; what went wrong is said on stderr."""
    given = _parser().parse_args(arguments)
    try:
        given.command(given)
    except Refused as refused:
        return _failed(refused.reason, 4)
    except StoreFailed as failed:
        return _failed(failed.reason, 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fallow scheduler", description="The central service of Fallow.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve agents, sites and clients until SIGTERM"))
    _add_token(commands.add_parser("token", help="create, list and revoke tokens; needs no running scheduler"))
    database = commands.add_parser("db", help="look after the database")
    upgrading = database.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "upgrade", help="bring its tables to this version (serve does so by itself)"
    )
    _add_place(upgrading)
    upgrading.set_defaults(command=_upgrade)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--listen", default="127.0.0.1:7077", metavar="HOST:PORT", help="gRPC (port 0: any free one)")
    parser.add_argument("--page", default="127.0.0.1:7078", metavar="HOST:PORT", help="status page and metrics")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="clients must show a certificate signed by this")
    parser.add_argument("--ready-file", type=Path, metavar="FILE", help="written once the scheduler serves")
    parser.set_defaults(command=_serve)


def _add_token(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="print a new token, this once")
    create.add_argument("--role", required=True, metavar="ROLE", help=", ".join(TokenRole))
    create.add_argument("--valid-s", type=float, default=0.0, metavar="SECONDS", help="default: until revoked")
    listing = commands.add_parser("list", help="names and roles of valid tokens")
    revoke = commands.add_parser("revoke", help="make a token useless")
    for command, run in ((create, _create_token), (listing, _list_tokens), (revoke, _revoke_token)):
        _add_place(command)
        command.set_defaults(command=run)
        if command is not listing:
            command.add_argument("--name", required=True)


def _add_place(parser: argparse.ArgumentParser) -> None:
    home = Path(os.environ.get("FALLOW_HOME", "~/.fallow")).expanduser()
    parser.add_argument("--dir", type=Path, default=home / "scheduler", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--db", metavar="URL", help="sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME; default: DIR/fallow.db"
    )


def _serve(given: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in ("alembic", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)
    serve(
        Options(
            database=_database_url(given),
            listen=read_address("--listen", given.listen),
            page=read_address("--page", given.page),
            tls=_tls(given),
            ready_file=given.ready_file,
        )
    )


def _upgrade(given: argparse.Namespace) -> None:
    database = Database(_database_url(given))
    print(f"{shown(database.url)}: tables are of version {upgrade(database)}")


def _create_token(given: argparse.Namespace) -> None:
    print(_tokens(given).create(given.name, given.role, time.time(), given.valid_s))


def _list_tokens(given: argparse.Namespace) -> None:
    for token in _tokens(given).list(time.time()):
        ends = (
            "" if token.expires_s is None else time.strftime(" until %Y-%m-%d %H:%M:%S", time.gmtime(token.expires_s))
        )
        print(f"{token.name}\t{token.role}{ends}")


def _revoke_token(given: argparse.Namespace) -> None:
    _tokens(given).revoke(given.name, time.time())


def _tokens(given: argparse.Namespace) -> Tokens:
    database = Database(_database_url(given))
    upgrade(database)
    return Tokens(database)


def _database_url(given: argparse.Namespace) -> str:
    """Makes DIR, where the database is if --db does not say otherwise."""
    try:
        given.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = f"--dir: {given.dir} cannot be made: {error.strerror}."
        raise Refused(Reason("invalid_dir", message, "Name a folder that this user may write to.")) from error
    return str(given.db or f"sqlite:///{given.dir.absolute() / 'fallow.db'}")


def _tls(given: argparse.Namespace) -> TlsFiles | None:
    if given.tls_cert is None and given.tls_key is None and given.tls_ca is None:
        return None
    if given.tls_cert is None or given.tls_key is None:
        message = "--tls-cert and --tls-key go together, and --tls-ca needs both."
        raise Refused(Reason("invalid_tls", message, "Give both files, or none for plain connections on loopback."))
    return TlsFiles(given.tls_cert, given.tls_key, given.tls_ca)


def _failed(reason: Reason, otherwise: int) -> int:
    print(f"error: {reason.message}\n{reason.remedy}", file=sys.stderr)
    for code, starts in ((2, _USAGE), (1, _FAILED), (3, _UNREACHABLE)):
        if reason.code.startswith(starts):
            return code
    return otherwise
