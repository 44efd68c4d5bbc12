"""The pages and what they answer: the page, ``/predict``, ``/info``, ``/metrics`` and ``/healthz``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from edgekiln.pipeline.shipping.server.bodies import HeldBytes, SentPicture, read_pictures
from edgekiln.pipeline.shipping.server.engines import Engines, Served
from edgekiln.pipeline.shipping.server.guard import Access, Guard
from edgekiln.pipeline.shipping.server.limits import Limits
from edgekiln.pipeline.shipping.server.metrics import CONTENT_TYPE, Metrics, write_metrics
from edgekiln.pipeline.shipping.server.rates import Rates
from edgekiln.pipeline.shipping.server.refusals import (
    SCHEMA,
    RequestError,
    describe_error,
    error_response,
)
from edgekiln.runtime.errors import DeviceLostError, EdgekilnError, OverloadedError
from edgekiln.runtime.pictures.encoded import SUFFIXES
from edgekiln.runtime.serving.batching.request import Answer
from edgekiln.runtime.version import __version__

__all__ = ["Site", "create_app"]

_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/pictures.js": ("pictures.js", "text/javascript"),
    "/results.js": ("results.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""All files of the page by their addresses: nothing else of the disk can be asked for."""
_DEFAULT_TOP = 5


@dataclass(slots=True)
class Site:
    """What the handlers share.

    Attributes:
        lost: a GPU failed in a way that stays: this process has to be started again.
    """

    engines: Engines
    access: Access
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    held: HeldBytes = field(init=False)
    lost: bool = False

    def __post_init__(self) -> None:
        self.held = HeldBytes(self.limits.held_bytes)

    def describe(self) -> dict[str, Any]:
        """What ``/info`` tells."""
        return {
            "schema_version": SCHEMA,
            "ok": True,
            "version": __version__,
            **self.engines.describe(),
            "limits": {"body_bytes": self.limits.body_bytes, "pictures": self.limits.pictures},
            "suffixes": sorted(SUFFIXES),
        }


def create_app(site: Site) -> Starlette:
    """The whole application, guarded."""
    handlers = _Handlers(site)
    routes = [
        *(Route(path, handlers.show_page, methods=["GET"]) for path in _PAGE),
        Route("/info", handlers.tell_info, methods=["GET"]),
        Route("/healthz", handlers.tell_health, methods=["GET"]),
        Route("/metrics", handlers.tell_metrics, methods=["GET"]),
        Route("/predict", handlers.predict, methods=["POST"]),
    ]
    guard = Middleware(
        Guard,
        access=site.access,
        rates=Rates(site.limits.rate),
        metrics=site.metrics,
        paths={route.path for route in routes},
    )
    app = Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: _tell_no_page})
    app.router.redirect_slashes = False
    return app


async def _tell_no_page(request: Request, error: Exception) -> Response:
    """What the router refuses, with the methods that it would take."""
    assert isinstance(error, HTTPException)
    reason = "method" if error.status_code == 405 else "path"
    text = (
        "This address does not take that method."
        if reason == "method"
        else "There is nothing at this address."
    )
    refusal = RequestError(
        text, status=error.status_code, reason=reason, hint="docs/serving.md lists what there is."
    )
    response = error_response(refusal)
    response.headers.update(error.headers or {})
    return response


class _Handlers:
    def __init__(self, site: Site) -> None:
        self._site = site
        folder = files("edgekiln.pipeline.shipping.server") / "page"
        self._page = {path: (folder / name).read_bytes() for path, (name, _) in _PAGE.items()}

    async def show_page(self, request: Request) -> Response:
        path, access = request.scope["path"], self._site.access
        if path == "/" and "token" in request.query_params:  # which the guard has found to be right
            answer: Response = RedirectResponse("/", 303)  # so that it stays in no history
            answer.set_cookie(access.cookie, access.token, httponly=True, samesite="strict", path="/")
            return answer
        return Response(self._page[path], media_type=_PAGE[path][1])

    async def tell_info(self, request: Request) -> Response:
        return JSONResponse(self._site.describe())

    async def tell_health(self, request: Request) -> Response:
        """Without a token: whoever restarts the process need not know it, and it tells nothing else."""
        if self._site.lost:
            return JSONResponse({"ok": False, "reason": "the device is lost: start the process again"}, 503)
        return JSONResponse({"ok": True})

    async def tell_metrics(self, request: Request) -> Response:
        engines = self._site.engines
        described = engines.describe()
        infos = [
            {
                "version": __version__,
                "bundle": described["bundle"]["name"],
                "digest": described["bundle"]["digest"],
                **{key: variant[key] for key in ("name", "backend", "precision")},
            }
            for variant in described["variants"]
        ]
        counters = {served.name: served.batcher.read_counters() for served in engines.served}
        text = write_metrics(self._site.metrics, counters, infos, self._site.held.now)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def predict(self, request: Request) -> Response:
        query = request.query_params
        if unknown := sorted(set(query) - {"variant", "top"}):
            raise RequestError(
                f"Unknown parameter {unknown[0][:100]!r}; known: variant, top.", status=400, reason="query"
            )
        served = self._site.engines.find(query.get("variant"))
        top = _read_top(query.get("top"), len(served.classifier.contract.classes))
        with self._site.held.account() as account:
            pictures = await read_pictures(request, self._site.limits, account)
            variant = served.classifier.variant
            answers, errors = await self._answer(served, pictures, top)
        values = {
            "variant": {"name": variant.name, "backend": variant.backend, "precision": variant.precision},
            "answers": answers,
        }
        if len(errors) == len(answers):
            return error_response(errors[0], values)
        return JSONResponse({"schema_version": SCHEMA, "ok": True, **values})

    async def _answer(
        self, served: Served, pictures: Sequence[SentPicture], top: int
    ) -> tuple[list[dict[str, Any]], list[EdgekilnError]]:
        """One entry for each picture, in their order; and the errors among them."""
        futures = await self._submit_all(served, pictures)
        entries: list[dict[str, Any]] = []
        errors: list[EdgekilnError] = []
        for picture, future in zip(pictures, futures, strict=True):
            try:
                if isinstance(future, EdgekilnError):
                    raise future
                prediction = await asyncio.wrap_future(future)
            except EdgekilnError as error:
                errors.append(error)
                self._note_error(error)
                entries.append({"name": picture.name, "error": describe_error(error)})
                continue
            best = [{"label": c.label, "score": c.score} for c in prediction.top(top)]
            entries.append(
                {"name": picture.name, **best[0], "top": best, "times": self._note_times(served, future)}
            )
        return entries, errors

    async def _submit_all(
        self, served: Served, pictures: Sequence[SentPicture]
    ) -> list[Answer | EdgekilnError]:
        """Hand all to the batcher. Where its queue is full of this request's own, one of them is awaited."""
        given: list[Answer | EdgekilnError] = []
        for picture in pictures:
            while True:
                under_way = [
                    f for f in given if isinstance(f, Future) and not f.done()
                ]  # before the queue is asked
                try:
                    deadline_ms = self._site.limits.deadline_ms
                    given.append(
                        served.batcher.submit(picture.encoded, deadline_ms=deadline_ms, in_pool=True)
                    )
                except OverloadedError as error:
                    if under_way:
                        await _wait_for(under_way[0])
                        continue
                    given.append(error)
                except EdgekilnError as error:
                    given.append(error)
                break
        return given

    def _note_error(self, error: EdgekilnError) -> None:
        self._site.metrics.errors[error.code] += 1
        self._site.lost |= isinstance(error, DeviceLostError)

    def _note_times(self, served: Served, answer: Answer) -> Mapping[str, float]:
        assert answer.times is not None  # it is answered
        for stage in ("decode", "wait", "engine"):
            self._site.metrics.observe_stage(served.name, stage, getattr(answer.times, f"{stage}_ms"))
        return asdict(answer.times)


async def _wait_for(answer: Answer) -> None:
    """Until it has ended, however; its error is told where it is read."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    answer.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(ended.set))
    await ended.wait()


def _read_top(text: str | None, classes: int) -> int:
    if text is None:
        return min(_DEFAULT_TOP, classes)
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise RequestError(f"top is a number from 1, got {text[:100]!r}.", status=400, reason="query")
    return min(int(text), classes)
