"""Tokens: found while valid, useless after, and never kept themselves."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from scheduler.domain.reasons import Refused
from scheduler.store.sql_store import SqlStore
from scheduler.store.tokens import TokenRole, Tokens


@pytest.fixture
def tokens(store: SqlStore) -> Tokens:
    return Tokens(store.database)


def refusal(tokens: Tokens, name: str, role: str, valid_s: float = 0.0) -> str:
    with pytest.raises(Refused) as refused:
        tokens.create(name, role, 0.0, valid_s)
    return refused.value.reason.code


@pytest.mark.parametrize("role", list(TokenRole))
def test_a_token_is_found_by_itself_alone(tokens: Tokens, role: TokenRole) -> None:
    secret = tokens.create("ada", role, now_s=10.0)
    assert secret.startswith(f"fallow-{role}-")
    found = tokens.find(secret, 11.0)
    assert found is not None
    assert (found.name, found.role, found.created_s, found.expires_s) == ("ada", role, 10.0, None)
    assert tokens.find(secret + "x", 11.0) is None
    assert tokens.find("", 11.0) is None


def test_only_a_hash_is_kept(tokens: Tokens, store: SqlStore) -> None:
    secret = tokens.create("ada", "user", 0.0)
    with store.database.reading() as connection:
        kept = str(connection.execute(text("SELECT * FROM tokens")).all())
    assert secret not in kept
    assert secret.rpartition("-")[2] not in kept


def test_tokens_expire_and_their_names_are_free_again(tokens: Tokens) -> None:
    secret = tokens.create("ada", "user", now_s=100.0, valid_s=10.0)
    assert tokens.find(secret, 109.9) is not None
    assert tokens.find(secret, 110.0) is None
    assert tokens.list(110.0) == ()
    tokens.create("ada", "user", now_s=111.0)


def test_a_revoked_token_is_useless_at_once(tokens: Tokens) -> None:
    secret, other = tokens.create("ada", "user", 0.0), tokens.create("bob", "user", 0.0)
    tokens.revoke("ada", 1.0)
    assert tokens.find(secret, 2.0) is None
    assert tokens.find(other, 2.0) is not None
    assert [token.name for token in tokens.list(2.0)] == ["bob"]
    with pytest.raises(Refused) as refused:
        tokens.revoke("ada", 3.0)
    assert refused.value.reason.code == "not_found"
    assert tokens.create("ada", "user", 4.0) != secret


def test_what_cannot_be_a_token_is_refused_by_its_field(tokens: Tokens) -> None:
    tokens.create("ada", "user", 0.0)
    assert refusal(tokens, "ada", "user") == "already_exists"
    assert refusal(tokens, "bob", "root") == "invalid_role"
    assert refusal(tokens, "", "user") == "invalid_name"
    assert refusal(tokens, "a\nb", "user") == "invalid_name"
    assert refusal(tokens, "bob", "user", valid_s=-1.0) == "invalid_duration"
    assert refusal(tokens, "bob", "user", valid_s=float("nan")) == "invalid_duration"
