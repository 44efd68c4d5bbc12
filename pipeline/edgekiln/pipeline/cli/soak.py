"""``soak``: does the runtime leak, drift or mix up answers, minute after minute?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import device_option, json_option, print_document
from edgekiln.runtime.errors import GateError, UsageError
from edgekiln.runtime.pictures.encoded import CAMERA_SUFFIXES, SUFFIXES
from edgekiln.runtime.pictures.finding import list_pictures

if TYPE_CHECKING:
    from edgekiln.benchmarks.endurance.soak_result import Minute, SoakResult
    from edgekiln.runtime.contract import Contract

__all__ = ["soak"]

_HEADINGS = ("minute", "answered", "refused", "p50 ms", "p99 ms", "RSS MB", "open files")
_HINT = (
    "Run it for longer, on a machine that does nothing else: a leak goes on growing, a reserve levels off."
)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--minutes", type=click.IntRange(min=3), default=10, show_default=True, help="The first warms up."
)
@click.option("--callers", type=click.IntRange(min=1), default=4, show_default=True, help="Threads that ask.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder of pictures to run beside made-up ones."
)
@click.option("--variant", help="This engine instead of the preferred one.")
@device_option
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the engine.")
@json_option
def soak(
    bundle: Path,
    minutes: int,
    callers: int,
    images: Path | None,
    variant: str | None,
    device: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Use a bundle for minutes on end: good and bad pictures, from several threads, singly, batched, streamed and
    from an event loop, reloaded in each minute.

    Exits 3 when a call goes wrong, when memory grows by over 10 MB after the first minute, when file descriptors grow,
    or when p99 drifts by over 20 %. Something else that runs on the machine may do the last.

    \b
    edgekiln soak runs/traffic-lights/bundle --minutes 60
    """
    from edgekiln.benchmarks.endurance.soak import run_soak
    from edgekiln.runtime import load

    if images is not None and not images.is_dir():
        raise UsageError(f"There is no folder {images}.", path=images)
    with load(bundle, variant=variant, device=device, threads=threads) as classifier:
        pictures = [] if images is None else _list_pictures(images, classifier.contract)
        if not as_json:
            click.echo(_format_row(_HEADINGS))
        result = run_soak(
            classifier,
            minutes=minutes,
            callers=callers,
            pictures=pictures,
            reload_from=bundle,
            on_minute=(lambda minute: None) if as_json else _print_minute,
        )
    _print_result(result, as_json)


def _list_pictures(folder: Path, contract: Contract) -> list[Path]:
    camera = contract.sensor_bits is not None
    found = list_pictures(folder, camera=camera)
    if not found:
        suffixes = sorted(SUFFIXES | CAMERA_SUFFIXES if camera else SUFFIXES)
        raise UsageError(f"{folder} holds no pictures ({', '.join(suffixes)}).", path=folder)
    return found


def _format_row(cells: Sequence[str]) -> str:
    return "  ".join(f"{cell:>9}" for cell in cells)


def _print_minute(minute: Minute) -> None:
    cells = (
        f"{minute.number}{' warm-up' if minute.number == 1 else ''}",
        f"{minute.answered}",
        f"{minute.refused}",
        f"{minute.p50_ms:.2f}",
        f"{minute.p99_ms:.2f}",
        f"{minute.rss_mb:.1f}",
        f"{minute.descriptors}",
    )
    click.echo(_format_row(cells))


def _print_result(result: SoakResult, as_json: bool) -> None:
    """One document also on failure; otherwise a summary, and the failure as an error."""
    problems = result.problems
    error = (
        GateError(f"The soak of {result.variant} failed: {'; '.join(problems)}.", hint=_HINT)
        if problems
        else None
    )
    if not as_json:
        click.echo(
            f"{result.variant}: RSS {result.rss_growth_mb:+.1f} MB, descriptors {result.descriptor_growth:+d}, "
            f"p99 {result.p99_drift:+.0%}, {result.fault_count} faults"
        )
        if error is not None:
            raise error
    elif error is None:
        print_document(result.to_dict())
    else:
        told = {"code": error.code, "message": error.message, "hint": error.hint, "path": None}
        click.echo(json.dumps({"schema_version": "1.0", "ok": False, "error": told, **result.to_dict()}))
        raise click.exceptions.Exit(int(error.exit_code))
