"""Who is calling, and what that role may call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any

from protocol.metadata import TOKEN_KEY
from scheduler.clock import Clock
from scheduler.domain.reasons import Reason, Refused
from scheduler.store.failures import StoreFailed
from scheduler.store.tokens import Token, TokenRole, Tokens

_AGENT = frozenset({TokenRole.AGENT})
_SITE = frozenset({TokenRole.SITE})
_READ = frozenset({TokenRole.VIEWER, TokenRole.USER, TokenRole.ADMIN})
_READ_OR_SITE = _READ | _SITE
_WRITE = frozenset({TokenRole.USER, TokenRole.ADMIN})
_ADMIN = frozenset({TokenRole.ADMIN})

ROLES: dict[str, frozenset[TokenRole]] = {
    "/fallow.v1.AgentService/Connect": _AGENT,
    "/fallow.v1.SiteService/Session": _SITE,
    "/fallow.v1.FallowService/Submit": _WRITE,
    "/fallow.v1.FallowService/GetJob": _READ,
    "/fallow.v1.FallowService/ListJobs": _READ_OR_SITE,
    "/fallow.v1.FallowService/WatchJob": _READ,
    "/fallow.v1.FallowService/JobLogs": _READ,
    "/fallow.v1.FallowService/CancelJob": _WRITE,
    "/fallow.v1.FallowService/ListNodes": _READ_OR_SITE,
    "/fallow.v1.FallowService/Drain": _ADMIN,
    "/fallow.v1.FallowService/Why": _READ,
    "/fallow.v1.FallowService/Usage": _READ,
    "/fallow.v1.FallowService/CreateToken": _ADMIN,
    "/fallow.v1.FallowService/ListTokens": _ADMIN,
    "/fallow.v1.FallowService/RevokeToken": _ADMIN,
}
"""Who may call what. Health and reflection are not listed: they say nothing of jobs or nodes, anyone may ask."""

VIEWERS = _READ
"""Roles that may see the status page and the metrics."""

TRUST_S = 2.0
"""How long a token counts as valid after it was looked up: a revocation takes at most so long."""


class Auth:
    """Finds tokens; remembers the valid ones for `TRUST_S`, so that calls seldom wait for the database."""

    def __init__(self, tokens: Tokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self._found: dict[str, tuple[Token, float]] = {}

    async def caller(self, metadata: Iterable[tuple[str, Any]] | None) -> Token:
        """Whoever sent this metadata. Raises `Refused` (unauthenticated)."""
        secret = bearer(next((str(v) for k, v in metadata or () if k == TOKEN_KEY), ""))
        if not secret:
            raise Refused(_NO_TOKEN)
        token = self._remembered(secret) or await asyncio.to_thread(self.find, secret)
        if token is None:
            raise Refused(_WRONG_TOKEN)
        return token

    def find(self, secret: str) -> Token | None:
        """The token, or None if it is not valid. May wait for the database.

        While the database fails, tokens that it confirmed before stay valid: nobody can revoke one then either.
        """
        remembered = self._remembered(secret)
        if remembered is not None or not secret.startswith("fallow-"):
            return remembered
        now_s = self._clock.now_s()
        try:
            token = self._tokens.find(secret, now_s)
        except StoreFailed:
            if known := self._remembered(secret, trust_s=math.inf):
                return known
            raise
        if token is None:
            self._found.pop(secret, None)
        else:
            self._found[secret] = (token, now_s)
        return token

    def _remembered(self, secret: str, trust_s: float = TRUST_S) -> Token | None:
        token, found_s = self._found.get(secret, (None, 0.0))
        now_s = self._clock.now_s()
        if token is None or now_s - found_s > trust_s or (token.expires_s or now_s + 1) <= now_s:
            return None
        return token


def bearer(header: str) -> str:
    """The token of an `authorization` value; empty if there is none."""
    scheme, _, secret = header.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def check_role(token: Token, method: str) -> None:
    """Raises `Refused` (forbidden) if the token's role may not call the method."""
    allowed = ROLES[method]
    if token.role not in allowed:
        needed = " or ".join(sorted(allowed))
        message = f"Token {token.name!r} has the role {token.role}, which may not call {method.rpartition('/')[2]}."
        raise Refused(Reason("forbidden", message, f"Use a token of role {needed}."))


_NO_TOKEN = Reason(
    "unauthenticated",
    "The call carries no token.",
    "Set FALLOW_TOKEN, or give --token-file; an admin makes one with `fallow token create`.",
)
_WRONG_TOKEN = Reason(
    "unauthenticated",
    "The token is not valid here: it is unknown, has expired or was revoked.",
    "Ask an admin for a new one (`fallow token create`), and see that the address is the right scheduler's.",
)
