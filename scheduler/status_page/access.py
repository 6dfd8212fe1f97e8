"""Who may look at the page, and how a token gets from an address into a cookie."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse

Authorise = Callable[[str | None, bool], bool]
"""(token or None, whether the peer is on this machine) -> whether it may look."""

COOKIE = "fallow_viewer"
FORWARDING = ("forwarded", "x-forwarded-for", "x-real-ip", "via")

HEADERS: dict[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""On every answer: nothing from elsewhere is loaded, and nobody may frame or read the page."""


def may_view(request: Request, authorise: Authorise) -> bool:
    """Whether the request's token, or the place it comes from, is enough.

    A token that the request names must be right; an old cookie must not shut out who needs none.
    """
    local, named = is_local(request), _named_token(request)
    if named:
        return authorise(named, local)
    cookie = request.cookies.get(COOKIE)
    return authorise(cookie, local) or (cookie is not None and authorise(None, local))


def is_local(request: Request) -> bool:
    """Whether someone on this machine asks for this machine.

    The Host header counts too, or any web page could have its own name point to 127.0.0.1 and read this one through
    its visitor's browser; and a proxy on this machine speaks for strangers.
    """
    peer = request.client.host if request.client else ""
    relayed = any(header in request.headers for header in FORWARDING)
    return _is_loopback(peer) and _is_loopback(host_name(request)) and not relayed


def host_name(request: Request) -> str:
    """The name in the Host header, without its port."""
    host = request.headers.get("host", "").strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _named_token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.query_params.get("token") or None


def cookie_in_place_of_token(request: Request) -> RedirectResponse:
    """Send the browser to the same address without `?token=`, and keep the token where no script can read it."""
    rest = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
    path = "/" + request.url.path.lstrip("/")  # two slashes would lead to another host
    answer = RedirectResponse(path + (f"?{urlencode(rest)}" if rest else ""), status_code=303)
    answer.set_cookie(
        COOKIE,
        request.query_params["token"],
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )
    return answer
