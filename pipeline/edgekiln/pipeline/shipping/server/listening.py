"""From a socket to the end of the process: listening, signals, reloads, and ending with nothing half-answered."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgekiln.pipeline.shipping.server.app import Site, create_app
from edgekiln.pipeline.shipping.server.engines import describe_bundle
from edgekiln.pipeline.shipping.server.limits import Limits
from edgekiln.runtime.errors import EdgekilnError, UsageError

__all__ = ["open_socket", "serve_site"]

_log = logging.getLogger("edgekiln.serve")


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        UsageError: the address is none of this machine's, the port is taken, or may not be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"{host!r} is no address to listen on: {error}.", hint="127.0.0.1 is this machine."
        ) from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(1024)
    except OSError as error:
        opened.close()
        raise UsageError(
            f"Port {port} of {host} cannot be listened on: {os.strerror(error.errno or errno.EINVAL)}.",
            hint="--port 0 takes a free one; 127.0.0.1 is this machine, and ports below 1024 are the system's.",
        ) from error
    return opened


def serve_site(
    site: Site, listener: socket.socket, tell: Callable[[str], None], ready: Callable[[], None]
) -> None:
    """Answer until SIGTERM or Ctrl-C, then finish what is under way. SIGHUP, or a changed bundle, reloads.

    Args:
        site: what answers.
        listener: of ``open_socket``; it is closed.
        tell: is given a sentence where something happened.
        ready: called when requests are answered.
    """
    limits = site.limits
    config = uvicorn.Config(
        create_app(site),
        http=_protocol_for(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,  # its lines would hold the token
        proxy_headers=False,  # what a client says of its address is not believed
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.grace_seconds,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    asyncio.run(_serve(_Server(config), site, listener, tell, ready))


class _Server(uvicorn.Server):
    """Leaves the signals alone: uvicorn's own handlers would end the process by the signal, and not with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Nothing is captured."""
        yield


async def _serve(
    server: _Server,
    site: Site,
    listener: socket.socket,
    tell: Callable[[str], None],
    ready: Callable[[], None],
) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True
            return
        server.should_exit = True
        tell("Stopping: what is under way is answered; once more stops at once.")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    had_terminal = _has_terminal()

    def hang_up() -> None:
        if had_terminal and not _has_terminal():
            stop()  # its window was closed: nobody would find it again
        else:
            asked.set()

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    watching = asyncio.create_task(_watch(site, asked, tell))
    telling = asyncio.create_task(_tell_ready(server, ready))
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in (watching, telling):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _has_terminal() -> bool:
    """Whether this process has a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _tell_ready(server: uvicorn.Server, ready: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    ready()


async def _watch(site: Site, asked: asyncio.Event, tell: Callable[[str], None]) -> None:
    """Reload where SIGHUP came, and where the bundle's files changed and then stayed as they are for one look."""
    engines, loop = site.engines, asyncio.get_running_loop()
    tried = seen = await loop.run_in_executor(None, engines.read_snapshot)
    while True:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asked.wait(), site.limits.look_seconds)
        last, seen = seen, await loop.run_in_executor(None, engines.read_snapshot)
        settled = seen is not None and seen == last and seen != tried
        if not (asked.is_set() or settled):
            continue
        asked.clear()
        tried = seen
        await loop.run_in_executor(None, _reload, site, tell)


def _reload(site: Site, tell: Callable[[str], None]) -> None:
    try:
        site.engines.reload()
    except EdgekilnError as error:
        site.metrics.reloads["kept"] += 1
        tell(f"The bundle was not reloaded, {describe_bundle(site.engines.bundle)} goes on: {error}")
    except Exception:
        site.metrics.reloads["kept"] += 1
        _log.exception("a reload ended by an error of its own")
        tell(f"The bundle was not reloaded, {describe_bundle(site.engines.bundle)} goes on: see the log.")
    else:
        site.metrics.reloads["ok"] += 1
        tell(f"Reloaded: {describe_bundle(site.engines.bundle)} is served.")


def _protocol_for(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol, which by itself waits for ever for the rest of a request's head."""

    class _Protocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        # The ignore: uvicorn narrows the type of asyncio's own parameter, too.
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            super().connection_lost(exc)

        def _watch_head(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget_head()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(limits.header_seconds, self.transport.close)

        def _forget_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return _Protocol
