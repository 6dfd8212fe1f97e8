"""Who may speak to the scheduler: named tokens with one role each, kept as hashes.

A token is 256 random bits, so one round of SHA-256 keeps it safe: slow hashes such as scrypt protect passwords that
can be guessed, and nobody guesses 256 bits. A slow hash would only cost time at every call.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, or_, select, update

from scheduler.domain.reasons import Reason, Refused
from scheduler.store import schema
from scheduler.store.database import Database


class TokenRole(StrEnum):
    """What the bearer of a token may do."""

    ADMIN = "admin"
    USER = "user"
    AGENT = "agent"
    SITE = "site"
    VIEWER = "viewer"


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: everything but itself."""

    name: str
    role: TokenRole
    created_s: float
    expires_s: float | None = None


class Tokens:
    """Creates, finds, lists and revokes tokens. Raises `Refused` and `StoreFailed`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, role: str, now_s: float, valid_s: float = 0.0) -> str:
        """A new token; it is shown this once. `valid_s` 0: valid until it is revoked."""
        known = _role(role)
        secret = f"fallow-{known}-{secrets.token_urlsafe(32)}"
        row = {
            "hash": _hash(secret),
            "name": _checked_name(name),
            "role": known.value,
            "created_s": now_s,
            "expires_s": _expiry(now_s, valid_s),
            "revoked_s": None,
        }
        with self._database.writing() as connection:
            _free_expired_names(connection, now_s)
            token = schema.tokens.c
            if connection.scalar(select(token.name).where(token.name == name, token.revoked_s.is_(None))):
                message = f"A token named {name!r} exists already."
                raise Refused(Reason("already_exists", message, "Choose another name, or revoke that one first."))
            self._database.add(connection, schema.tokens, [row])
        return secret

    def find(self, secret: str, now_s: float) -> Token | None:
        """The token, if it was created here, has not expired and was not revoked."""
        token = schema.tokens.c
        query = select(token.name, token.role, token.created_s, token.expires_s).where(
            token.hash == _hash(secret),
            token.revoked_s.is_(None),
            or_(token.expires_s.is_(None), token.expires_s > now_s),
        )
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _token(row)

    def list(self, now_s: float) -> tuple[Token, ...]:
        """Every valid token, by name."""
        token = schema.tokens.c
        query = (
            select(token.name, token.role, token.created_s, token.expires_s)
            .where(token.revoked_s.is_(None), or_(token.expires_s.is_(None), token.expires_s > now_s))
            .order_by(token.name)
        )
        with self._database.reading() as connection:
            return tuple(map(_token, connection.execute(query)))

    def revoke(self, name: str, now_s: float) -> None:
        """End a token's validity. Raises `Refused` if there is none of that name."""
        token = schema.tokens.c
        query = update(schema.tokens).where(token.name == name, token.revoked_s.is_(None)).values(revoked_s=now_s)
        with self._database.writing() as connection:
            found = connection.execute(query).rowcount
        if not found:
            message = f"There is no token named {name!r}."
            raise Refused(Reason("not_found", message, "See `fallow token list` for the names."))


def _free_expired_names(connection: Connection, now_s: float) -> None:
    token = schema.tokens.c
    expired = update(schema.tokens).where(token.revoked_s.is_(None), token.expires_s <= now_s)
    connection.execute(expired.values(revoked_s=now_s))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: Iterable[Any]) -> Token:
    name, role, created_s, expires_s = row
    return Token(name, TokenRole(role), created_s, expires_s)


def _role(role: str) -> TokenRole:
    try:
        return TokenRole(role)
    except ValueError:
        message = f"role: {role!r} is not a role."
        raise Refused(Reason("invalid_role", message, f"Choose one of {', '.join(TokenRole)}.")) from None


def _checked_name(name: str) -> str:
    if not 1 <= len(name) <= 100 or not name.isprintable():
        message = "name: a token needs a name of 1 to 100 printable characters."
        raise Refused(Reason("invalid_name", message, "Name it after its user, agent or site."))
    return name


def _expiry(now_s: float, valid_s: float) -> float | None:
    if not 0 <= valid_s < float("inf"):
        message = f"valid_s: {valid_s} is not a number of seconds."
        raise Refused(Reason("invalid_duration", message, "Give 0 for a token that is valid until it is revoked."))
    return now_s + valid_s if valid_s else None
