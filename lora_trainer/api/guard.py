"""Who may ask our REST interface: never more people, programs or pages than may use the WebUI's own page.

Of a page in a browser only what browsers themselves vouch for is believed: ``Sec-Fetch-Site`` (W3C Fetch Metadata),
``Origin`` (RFC 6454) and, for the GETs of old browsers, ``Referer``. No script of a foreign page can change these.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

_OWN = ("same-origin", "none")


@dataclass(frozen=True)
class Door:
    """How far the host's own interface is open.

    Args:
        auth: ``user:password`` pairs with commas between them, which programs need; empty: none are asked for.
        programs: whether programs may ask, and not only the host's own page (the WebUI's ``--api``).
        origins: other pages that the host lets in (``--cors-allow-origins``), or ``*``.
        origins_pattern: the same as a regular expression (``--cors-allow-origins-regex``).
    """

    auth: str = ""
    programs: bool = True
    origins: tuple[str, ...] = ()
    origins_pattern: str = ""

    def lets_in(self, origin: str) -> bool:
        """Whether the host's owner has let a foreign page in by name."""
        if origin in self.origins or "*" in self.origins:
            return True
        return bool(self.origins_pattern and re.fullmatch(self.origins_pattern, origin))


def guard(door: Door) -> Callable[..., None]:
    """A FastAPI dependency that lets a request through or ends it with 401, 403 or 415 and a sentence."""
    known = dict(pair.strip().split(":", 1) for pair in door.auth.split(",") if ":" in pair)
    basic = HTTPBasic(auto_error=False)

    def check(request: Request, credentials: HTTPBasicCredentials | None = Depends(basic)) -> None:  # noqa: B008
        own = _is_own_page(request, door)
        if own is False:
            raise HTTPException(403, "Another web page's requests are not answered.")
        if own is None and not door.programs:
            raise HTTPException(
                403,
                "Only the WebUI's own page is answered, since the WebUI runs without --api; "
                "start it with --api to open this interface to programs.",
            )
        if not _is_known(request, credentials, known):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})
        if request.method != "GET" and not _is_json(request):
            raise HTTPException(415, "body: only JSON is read; send it with the header Content-Type: application/json.")

    return check


def _is_own_page(request: Request, door: Door) -> bool | None:
    """Whether a request comes from a page that may ask; None when no browser says from which it comes."""
    origin = request.headers.get("origin")
    if origin is not None and door.lets_in(origin):
        return True
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in _OWN:
        return False
    if origin is not None:
        return site == "same-origin" or _is_here(request, origin)
    if site is not None:
        return True if site == "same-origin" else None
    referer = request.headers.get("referer")
    return None if referer is None else _is_here(request, referer)


def _is_here(request: Request, address: str) -> bool:
    """Whether an address is on this server, as the browser reached it (a proxy may have renamed it)."""
    try:
        place = urlsplit(address).netloc.lower()
    except ValueError:
        return False
    names = (request.headers.get("host"), request.headers.get("x-forwarded-host"))
    return bool(place) and place in {name.lower() for name in names if name}


def _is_known(request: Request, credentials: HTTPBasicCredentials | None, programs: dict[str, str]) -> bool:
    """Whether a request has the password that programs need; without one, the login of the host's page."""
    if programs:
        return credentials is not None and _matches(programs, credentials)
    page = getattr(request.app, "auth", None)  # gradio's app: (user → password), or a function that checks them
    if page is None:
        return True
    if credentials is not None:
        return _matches(page, credentials)
    return _page_user(request) is not None


def _matches(known: Any, given: HTTPBasicCredentials) -> bool:
    if callable(known):
        return bool(known(given.username, given.password))
    password = known.get(given.username)
    found = secrets.compare_digest(given.password.encode(), str(password or secrets.token_hex()).encode())
    return found and password is not None


def _page_user(request: Request) -> str | None:
    """Who has logged in on gradio's page: asked from gradio's own route, whose cookies have other names elsewhere."""
    for route in request.app.routes:
        if getattr(route, "path", "") == "/user":
            user = route.endpoint(request)
            return user if isinstance(user, str) else None
    return None


def _is_json(request: Request) -> bool:
    """Whether the body is declared as JSON; a request without a body and without a type has none to declare."""
    kind = request.headers.get("content-type")
    if kind is None:
        return request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    return kind.partition(";")[0].strip().lower() == "application/json"
