"""``serve``: a bundle behind HTTP, with a page to try it; ``shipping/server`` does it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgekiln.pipeline.cli.options import (
    as_printable,
    device_option,
    json_option,
    print_document,
    trusted_key_option,
)
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.extras import import_extra

__all__ = ["serve"]

_TOKEN_VARIABLE = "EDGEKILN_SERVE_TOKEN"
_SHORTEST_TOKEN = 16


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; the default is for this machine alone.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."
)
@click.option(
    "--variant", "variants", multiple=True, help="This engine instead of the preferred one; two are compared."
)
@device_option
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each engine.")
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=8, show_default=True, help="Pictures in a batch."
)
@click.option(
    "--max-wait-us",
    type=click.FloatRange(min=0),
    default=1000,
    show_default=True,
    help="How long the first picture of a batch waits for others, in microseconds.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Pictures that are decoded or wait; more are refused with 503.",
)
@click.option(
    "--max-rate",
    type=click.FloatRange(min=0),
    default=200,
    show_default=True,
    help="Requests a second from one address; 0: any number.",
)
@click.option(
    "--allowed-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name under which this server may be asked, beside addresses and localhost.",
)
@click.option("--allow-unverified", is_flag=True, help="With --variant: also one whose gate did not pass.")
@trusted_key_option
@json_option
def serve(
    bundle: Path,
    variants: Sequence[str],
    trusted_keys: Sequence[Path],
    as_json: bool,
    **options: Any,
) -> None:
    """Serve a bundle over HTTP, with a page to try it in the browser.

    Prints the address of the page, which holds a secret token. Programs send pictures to /predict with the same token;
    EDGEKILN_SERVE_TOKEN sets it. SIGHUP or a changed bundle reloads; Ctrl-C or SIGTERM answers what is under way and
    exits 0. docs/serving.md tells the requests, the answers and the limits.

    \b
    edgekiln serve runs/traffic-lights/bundle
    edgekiln serve runs/traffic-lights/bundle --variant fp32 --variant int8
    """
    for module in ("starlette", "uvicorn", "python_multipart"):
        import_extra(module, "serve")
    from edgekiln.pipeline.shipping.server.app import Site
    from edgekiln.pipeline.shipping.server.engines import Batching, Engines
    from edgekiln.pipeline.shipping.server.guard import Access
    from edgekiln.pipeline.shipping.server.limits import Limits
    from edgekiln.pipeline.shipping.server.listening import open_socket, serve_site
    from edgekiln.runtime.serving.selecting import LoadOptions

    token = _choose_token()
    engine = LoadOptions(
        variant=variants[0] if variants else None,
        device=options["device"],
        threads=options["threads"],
        allow_unverified=options["allow_unverified"],
        trusted_keys=trusted_keys or None,
    )
    batching = Batching(options["max_batch"], options["max_wait_us"], options["max_queue"])
    with (
        open_socket(options["host"], options["port"]) as listener,
        Engines(bundle, variants, engine, batching) as engines,
    ):
        host, port = listener.getsockname()[:2]
        names = frozenset(name.lower() for name in (*options["hosts"], options["host"]))
        site = Site(engines, Access(token, f"edgekiln-{port}", names), Limits(rate=options["max_rate"]))
        address = f"http://{_name_host(host)}:{port}/"
        serve_site(site, listener, _tell, lambda: _announce(site.describe(), address, token, as_json, host))


def _choose_token() -> str:
    """Random, or the caller's own, which is never an argument: those are seen by every user of the machine."""
    token = os.environ.get(_TOKEN_VARIABLE)
    if token is None:
        return secrets.token_urlsafe(24)
    if len(token) < _SHORTEST_TOKEN or not all(c.isascii() and (c.isalnum() or c in "-_") for c in token):
        raise UsageError(
            f"{_TOKEN_VARIABLE} has to be {_SHORTEST_TOKEN} or more letters, digits, - and _.",
            hint="`openssl rand -hex 24` makes one; without the variable a random one is taken.",
        )
    return token


def _name_host(host: str) -> str:
    """As it stands in an address: for all addresses of the machine, one that works on it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _tell(sentence: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed must not end what serves others
        click.echo(as_printable(sentence), err=True)


def _announce(served: dict[str, Any], address: str, token: str, as_json: bool, host: str) -> None:
    """Where it listens, on stdout at once: whoever started it waits for that."""
    for variant in served["variants"]:
        _tell(f"variant {variant['name']} ({variant['backend']}): {variant['reason']}")
        if variant["notice"]:
            _tell(f"variant {variant['name']} was {variant['notice']}")
    if not ipaddress.ip_address(host).is_loopback:
        _tell(
            "Nothing is encrypted: whoever can listen in on this network can read pictures and the token. "
            "Let a proxy with TLS stand before it."
        )
    if as_json:
        print_document({"address": address, "token": token, "variants": served["variants"]})
    else:
        click.echo(f"{address}?token={token}")
    sys.stdout.flush()
