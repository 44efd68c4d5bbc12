"""Who is let in: the right host, not too often, with the token, from no other site. And what every answer carries.

The token is a secret that only whoever started the server knows, so that other users of the machine and web pages that
are open in the browser cannot ask. A page whose name is pointed at this address (DNS rebinding) sends its own name as
Host: that is refused, while an address made of digits cannot be pointed anywhere.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
import time
from asyncio import CancelledError
from collections.abc import Collection
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekiln.pipeline.shipping.server.metrics import Metrics
from edgekiln.pipeline.shipping.server.rates import Rates
from edgekiln.pipeline.shipping.server.refusals import RequestError, error_response
from edgekiln.runtime.errors import EdgekilnError

__all__ = ["HEADERS", "Access", "Guard"]

_log = logging.getLogger("edgekiln.serve")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{0,5})?", re.ASCII)
_OPEN_PATHS = frozenset({"/healthz"})
_TOKEN_HINT = (
    "Open the address that `edgekiln serve` printed, or send the header Authorization: Bearer TOKEN."
)


@dataclass(frozen=True, slots=True)
class Access:
    """What lets a request in.

    Attributes:
        token: the secret.
        cookie: name of the cookie that holds it for the page.
        hosts: names, in lower case, that Host may hold beside addresses and ``localhost``.
    """

    token: str
    cookie: str
    hosts: Collection[str] = ()

    def accepts(self, offered: str) -> bool:
        """Compared in a time that tells nothing of the token."""
        return hmac.compare_digest(offered.encode("utf-8", "surrogateescape"), self.token.encode())


class Guard:
    """ASGI middleware around the whole application; it also counts, and turns every error into its JSON."""

    def __init__(
        self, app: ASGIApp, *, access: Access, rates: Rates, metrics: Metrics, paths: Collection[str]
    ) -> None:
        self._app, self._access, self._rates, self._metrics = app, access, rates, metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # neither lifespan nor websockets are served
            return
        begun, status = time.monotonic(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        try:
            self._check(Request(scope))
            await self._app(scope, receive, send_guarded)
        except ClientDisconnect:
            self._metrics.errors["disconnected"] += 1
        except (CancelledError, Exception) as error:
            told = _as_known(error)
            self._metrics.errors[told.code] += 1
            if not status:
                await error_response(told)(scope, receive, send_guarded)
        path = scope["path"] if scope["path"] in self._paths else "other"
        method = scope["method"] if scope["method"] in {"GET", "HEAD", "POST", "OPTIONS"} else "other"
        self._metrics.requests[path, method, str(status)] += 1
        if path == "/predict" and status < 400:
            self._metrics.seconds.observe(time.monotonic() - begun)
        _log.info("%s %s %d %.1f ms", method, path, status, 1000 * (time.monotonic() - begun))

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if not _is_own_host(host, self._access.hosts):
            raise RequestError(
                f"The host {host[:200]!r} is not this server's.",
                status=421,
                reason="host",
                hint="Ask by its address, or start it with --allowed-host NAME.",
            )
        if request.scope["path"] in _OPEN_PATHS:
            return
        self._rates.check(request.client.host if request.client else "")
        if not any(map(self._access.accepts, self._find_tokens(request))):
            raise RequestError("The token is missing or wrong.", status=401, reason="token", hint=_TOKEN_HINT)
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError(
                f"A page of {origin[:200]!r} may not ask.",
                status=403,
                reason="origin",
                hint="Ask from a program.",
            )

    def _find_tokens(self, request: Request) -> list[str]:
        """In the header, the page's cookie or, for the page alone, in the address."""
        found = []
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found.append(token.strip())
        for line in request.headers.getlist("cookie"):
            try:
                morsel = SimpleCookie(line).get(self._access.cookie)
            except CookieError:
                continue
            if morsel is not None:
                found.append(morsel.value)
        if request.scope["path"] == "/" and "token" in request.query_params:
            found = [
                request.query_params["token"]
            ]  # what was followed counts, not what is left of a former one
        return found


def _is_own_host(header: str, names: Collection[str]) -> bool:
    match = _HOST.fullmatch(header.lower())
    if match is None:
        return False
    host = match["v6"] or match["name"]
    if host == "localhost" or host in names:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _as_known(error: BaseException) -> EdgekilnError:
    """Whatever ended a request, as an error with a code."""
    if isinstance(error, EdgekilnError):
        return error
    if isinstance(error, CancelledError):
        return RequestError("The server is being stopped.", status=503, reason="stopping")
    _log.error("a request ended by an error of the server's own", exc_info=error)
    return EdgekilnError("This is a bug in edgekiln: see the server's log.")
