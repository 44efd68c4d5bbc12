"""How an error becomes an HTTP answer: its status, and the JSON that the command line would print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from edgekiln.runtime.errors import EdgekilnError, ImageError, UsageError

__all__ = ["SCHEMA", "RequestError", "describe_error", "error_response", "status_of"]

SCHEMA = "1.0"

_STATUS: Mapping[str, int] = {
    "image": 422,
    "usage": 400,
    "overloaded": 503,
    "deadline": 503,
    "resources": 503,
}
"""By the error's code. Any other is the server's own trouble: 500."""
_RETRY_SECONDS = "1"


class RequestError(UsageError):
    """A request that is refused before an engine sees anything of it.

    Attributes:
        status: of HTTP.
        reason: a word for programs: ``host``, ``origin``, ``token``, ``rate``, ``path``, ``method``, ``type``,
            ``length``, ``size``, ``slow``, ``multipart``, ``pictures``, ``query``, ``stopping``.
    """

    code = "request"

    def __init__(self, message: str, *, status: int, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.reason = reason


def status_of(error: EdgekilnError) -> int:
    """The HTTP status that says what kind of error it is."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, ImageError) and error.reason == "too_large":
        return 413
    if isinstance(error, ImageError) and error.reason == "memory":
        return 503
    return _STATUS.get(error.code, 500)


def describe_error(error: EdgekilnError) -> dict[str, str | None]:
    """As the command line tells it with ``--json``, without paths of this machine, and with the reason."""
    return {
        "code": error.code,
        "reason": getattr(error, "reason", None),
        "message": error.message,
        "hint": error.hint,
    }


def error_response(error: EdgekilnError, values: Mapping[str, Any] | None = None) -> JSONResponse:
    """One JSON document, beside ``values`` where something is known all the same."""
    status = status_of(error)
    headers = {"Retry-After": _RETRY_SECONDS} if status in {429, 503} else {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="edgekiln"'
    document = {"schema_version": SCHEMA, "ok": False, "error": describe_error(error), **(values or {})}
    return JSONResponse(document, status, headers)
