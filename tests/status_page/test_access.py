"""Who may look, and what every answer carries."""

from __future__ import annotations

import httpx
import pytest

from scheduler.status_page.app import create_app
from tests.status_page.scenario import FakeInventory, FakeLoop

GUARDED = ("/", "/events", "/api/state", "/api/nodes/n1")


def authorise(token: str | None, is_local: bool) -> bool:
    """As the scheduler does it: whoever is on this machine, or has the token."""
    return token == "fallow-viewer-right" or (is_local and not token)


def client(peer: str = "203.0.113.9", base: str = "https://fallow.example.org", **options: object) -> httpx.AsyncClient:
    app = create_app(FakeLoop(FakeInventory()), authorise)  # type: ignore[arg-type]
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app, client=(peer, 40_000)), base_url=base, **options  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("path", GUARDED)
async def test_strangers_are_told_how_to_get_in_and_nothing_else(path: str) -> None:
    async with client() as stranger:
        answer = await stranger.get(path, headers={"accept": "text/html"})
        program = await stranger.get(path)
    assert (answer.status_code, program.status_code) == (401, 401)
    assert "fallow token create --role viewer" in answer.text
    assert "fallow token create --role viewer" in program.json()["error"]
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_bearer_token_opens_everything() -> None:
    async with client(headers={"authorization": "Bearer fallow-viewer-right"}) as viewer:
        assert (await viewer.get("/")).status_code == 200
        assert (await viewer.get("/api/state")).status_code == 200
        assert (await viewer.get("/api/nodes/n1")).status_code == 404


async def test_a_token_in_the_address_becomes_a_cookie_at_once() -> None:
    async with client() as viewer:
        answer = await viewer.get("/?token=fallow-viewer-right&x=1")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?x=1")
        cookie = answer.headers["set-cookie"].lower()
        assert all(part in cookie for part in ("httponly", "samesite=strict", "secure", "path=/"))
        assert (await viewer.get("/api/state")).status_code == 200  # by the cookie


async def test_a_wrong_token_in_the_address_sets_no_cookie() -> None:
    async with client() as stranger:
        answer = await stranger.get("/?token=fallow-viewer-wrong")
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


async def test_the_exchange_leads_to_no_other_host() -> None:
    app = create_app(FakeLoop(FakeInventory()), authorise)  # type: ignore[arg-type]
    sent: list[dict[str, object]] = []
    scope = {
        "type": "http", "method": "GET", "path": "/api/nodes//evil.example/", "raw_path": b"", "scheme": "https",
        "query_string": b"token=fallow-viewer-right", "headers": [(b"host", b"fallow.example.org")],
        "client": ("203.0.113.9", 1), "server": ("fallow.example.org", 443), "root_path": "", "http_version": "1.1",
    }  # fmt: skip

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[arg-type]
    location = dict(sent[0]["headers"])[b"location"]  # type: ignore[call-overload]
    assert location.startswith(b"/api/nodes/")


@pytest.mark.parametrize(
    ("peer", "host", "headers", "status"),
    [
        ("127.0.0.1", "http://localhost:8700", {}, 200),
        ("127.0.0.1", "http://127.0.0.1:8700", {}, 200),
        ("::1", "http://[::1]:8700", {}, 200),
        ("::ffff:127.0.0.1", "http://fallow.localhost:8700", {}, 200),
        ("127.0.0.1", "http://evil.example:8700", {}, 401),  # a name that was made to point here
        ("127.0.0.1", "http://127.0.0.1.evil.example", {}, 401),
        ("127.0.0.1", "http://localhost.evil.example", {}, 401),
        ("127.0.0.1", "http://localhost:8700", {"x-forwarded-for": "127.0.0.1"}, 401),  # a proxy asks for a stranger
        ("203.0.113.9", "http://localhost:8700", {}, 401),  # a stranger says it is local
        ("127.0.0.1", "http://localhost:8700", {"authorization": "Bearer wrong"}, 401),
        ("127.0.0.1", "http://localhost:8700", {"cookie": "fallow_viewer=old"}, 200),
        ("203.0.113.9", "http://fallow.example.org", {"cookie": "fallow_viewer=old"}, 401),
    ],
)
async def test_only_this_machine_itself_needs_no_token(
    peer: str, host: str, headers: dict[str, str], status: int
) -> None:
    async with client(peer, host) as visitor:
        assert (await visitor.get("/api/state", headers=headers)).status_code == status


@pytest.mark.parametrize("path", ["/", "/api/state", "/assets/main.js", "/assets/none", "/nowhere"])
async def test_every_answer_is_locked_down(path: str) -> None:
    async with client("127.0.0.1", "http://localhost") as visitor:
        answer = await visitor.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/assets/../app.py", "/assets/%2e%2e/app.py", "/assets/..%2f..%2fclock.py"])
async def test_only_assets_are_given_out(path: str) -> None:
    async with client("127.0.0.1", "http://localhost") as visitor:
        assert (await visitor.get(path)).status_code == 404
