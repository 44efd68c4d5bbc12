"""The pictures of a request: its body read within limits, as one picture or as the files of a form.

Everything stays in memory, which is bounded for one request and for all together; nothing is written to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import Request

from edgekiln.pipeline.shipping.server.limits import Limits
from edgekiln.pipeline.shipping.server.refusals import RequestError
from edgekiln.runtime.errors import OverloadedError

__all__ = ["HeldBytes", "SentPicture", "read_pictures"]

_FORM = "multipart/form-data"
_TYPE_HINT = "Send a picture's bytes as image/* or application/octet-stream, or files as multipart/form-data."


@dataclass(frozen=True, slots=True)
class SentPicture:
    """One picture as it came: its file name, empty where none was given, and its encoded bytes."""

    name: str
    encoded: bytes


class HeldBytes:
    """Counts the bytes of all bodies in memory, so that many large requests together stay within a bound."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.now = 0

    @contextmanager
    def account(self) -> Iterator[_Account]:
        """What is added inside is given back at the end."""
        account = _Account(self)
        try:
            yield account
        finally:
            self.now -= account.taken

    def take(self, size: int) -> None:
        """Raises OverloadedError where that is too much."""
        if self.now + size > self._most:
            raise OverloadedError(
                f"The requests under way hold {self.now} bytes, the limit is {self._most}.",
                hint="Ask again later, or send smaller pictures.",
            )
        self.now += size


class _Account:
    def __init__(self, held: HeldBytes) -> None:
        self._held = held
        self.taken = 0

    def add(self, size: int) -> None:
        self._held.take(size)
        self.taken += size


async def read_pictures(request: Request, limits: Limits, account: _Account) -> list[SentPicture]:
    """The pictures of a request, in their order; at least one.

    Raises:
        RequestError: a type that is not taken, too much, too slow, or a form that is broken or holds no file.
        OverloadedError: all requests together hold too much.
    """
    kind, options = parse_options_header(request.headers.get("content-type", "application/octet-stream"))
    media = kind.decode("latin-1")
    if media != _FORM and media != "application/octet-stream" and not media.startswith("image/"):
        raise RequestError(
            f"A body of type {media[:100]!r} is not taken.", status=415, reason="type", hint=_TYPE_HINT
        )
    if "content-encoding" in request.headers:
        raise RequestError(
            "A compressed body is not taken.",
            status=415,
            reason="type",
            hint="Pictures are compressed already.",
        )
    body = await _read_body(request, limits, account)
    if media != _FORM:
        return [SentPicture("", body)]
    pictures = _split_form(body, options.get(b"boundary", b""), limits.pictures)
    if not pictures:
        raise RequestError(
            "The form holds no file.", status=400, reason="pictures", hint="curl: -F picture=@photo.jpg"
        )
    return pictures


async def _read_body(request: Request, limits: Limits, account: _Account) -> bytes:
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > limits.body_bytes:  # h11 let only digits through
        raise _too_large(limits)
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                account.add(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise RequestError(
            f"The body was not complete within {limits.body_seconds:g} s.", status=408, reason="slow"
        ) from error
    if not size:
        raise RequestError("The request has no body.", status=400, reason="length", hint=_TYPE_HINT)
    return b"".join(chunks)


def _too_large(limits: Limits) -> RequestError:
    return RequestError(
        f"The body has over {limits.body_bytes} bytes.",
        status=413,
        reason="size",
        hint="Send fewer pictures in one request, or scale them down.",
    )


@dataclass(slots=True)
class _Part:
    """One field of a form while it is read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    header: bytes = b""
    data: list[bytes] = field(default_factory=list)


class _Form:
    """Takes the parser's calls, and keeps the fields that are files."""

    def __init__(self, most: int) -> None:
        self.files: list[SentPicture] = []
        self._most = most
        self._part = _Part()
        self._value = b""

    def on_part_begin(self) -> None:
        self._part = _Part()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._part.headers[self._part.header.lower()] = self._value
        self._part.header = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data.append(data[start:end])

    def on_part_end(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        if b"filename" not in options:
            raise RequestError(
                "A field of the form is no file.",
                status=400,
                reason="multipart",
                hint="Send files only (curl: -F picture=@photo.jpg); what is asked for stands in the address.",
            )
        if len(self.files) == self._most:
            raise RequestError(
                f"The form holds over {self._most} pictures.",
                status=413,
                reason="pictures",
                hint="Send them in several requests.",
            )
        name = options[b"filename"].decode("utf-8", "replace")
        self.files.append(SentPicture(name, b"".join(self._part.data)))


def _split_form(body: bytes, boundary: bytes, most: int) -> list[SentPicture]:
    form = _Form(most)
    callbacks = {name: getattr(form, name) for name in vars(_Form) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type] # a dictionary of just these
        parser.write(body)
    except FormParserError as error:
        raise _broken_form(str(error)) from error
    if not boundary or parser.state != MultipartState.END:
        raise _broken_form("it has no end" if boundary else "its type names no boundary")
    return form.files


def _broken_form(why: str) -> RequestError:
    return RequestError(
        f"The form cannot be read: {why}.",
        status=400,
        reason="multipart",
        hint="Let an HTTP library write it.",
    )
