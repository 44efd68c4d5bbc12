"""``diff``: what two engines compute otherwise, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekiln.pipeline.cli.layer_sources import LayerWish, read_profiles
from edgekiln.pipeline.cli.options import echo_line, json_option, print_document, trusted_key_option
from edgekiln.runtime.errors import UsageError

if TYPE_CHECKING:
    from edgekiln.export.audits.layers.difference import EngineDifference
    from edgekiln.export.audits.layers.profile import EngineProfile

__all__ = ["diff"]

_T = TypeVar("_T")
_MOVED = 0.02
"""Of the time of a part: what is the same in both and differs by less is not shown."""
_TWICE = "Once for both, or twice: for the first and for the second."


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--time", is_flag=True, help="Also how long each layer takes here, by the library's profiler.")
@click.option("--variant", "variants", multiple=True, metavar="NAME", help=f"Of a bundle. {_TWICE}")
@click.option(
    "--backend", "backends", multiple=True, type=click.Choice(["onnxruntime-cpu", "openvino"]),
    help=f"Of an ONNX file. {_TWICE}",
)  # fmt: skip
@click.option(
    "--onnx", "graphs", multiple=True, type=click.Path(path_type=Path),
    help=f"Of an engine: its ONNX file, for the MACs. {_TWICE}",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--all", "show_all", is_flag=True, help="Also what is the same in both.")
@trusted_key_option
@json_option
def diff(  # noqa: PLR0913 # one argument for each option
    before: Path,
    after: Path,
    time: bool,
    variants: tuple[str, ...],
    backends: tuple[Any, ...],
    graphs: tuple[Path, ...],
    threads: int | None,
    show_all: bool,
    trusted_keys: Sequence[Path],
    as_json: bool,
) -> None:
    """Compare two engines layer by layer: precision, time, reformats, kernels, and what is fused.

    Layers are aligned by the ONNX nodes that they compute. BEFORE and AFTER are bundles, ONNX files, engines, or layers
    that were written down: by `inspect --layers --json` (on another device, with another version of the library), by
    `trtexec --exportLayerInfo`, or in a report.json. Engines are loaded and run, each in a process of its own: an
    engine is code, so give such that you trust.

    \b
    edgekiln diff runs/traffic-lights/bundle runs/traffic-lights/bundle --variant fp32 --variant int8 --time
    edgekiln diff jetson-6.json jetson-7.json
    """
    wishes = [
        LayerWish(time, tuple(_pick(variants, side)), _first(backends, side), _first(graphs, side), threads,
                  trusted_keys or None)
        for side in (0, 1)
    ]  # fmt: skip
    sides = [
        read_profiles(path, _fit(wish, path)) for path, wish in zip((before, after), wishes, strict=True)
    ]
    differences, alone = _pair(*sides)
    if as_json:
        print_document({"differences": [d.to_dict() for d in differences], "alone": alone})
        return
    for number, difference in enumerate(differences):
        if number:
            click.echo()
        for line in _tell(difference.to_dict(), show_all):
            echo_line(line)
    for word, names in alone.items():
        if names:
            echo_line(f"only in the {word}: {', '.join(names)}")


def _pick(values: tuple[_T, ...], side: int) -> tuple[_T, ...]:
    """The value for one side, of an option that was given once or twice."""
    if len(values) > 2:
        raise UsageError("An option that stands for both engines was given more than twice.", hint=_TWICE)
    return values[side : side + 1] or values[:1]


def _first(values: tuple[_T, ...], side: int) -> _T | None:
    return next(iter(_pick(values, side)), None)


def _fit(wish: LayerWish, path: Path) -> LayerWish:
    """Layers that were written down are taken as they are, whatever the other side asks for."""
    return LayerWish(graph=wish.graph) if path.suffix == ".json" and path.is_file() else wish


def _pair(
    before: Sequence[EngineProfile], after: Sequence[EngineProfile]
) -> tuple[list[EngineDifference], dict[str, list[str]]]:
    """Engines of one name; two that are alone are compared whatever they are called."""
    from edgekiln.export.audits.layers.difference import compare_engines

    if len(before) == len(after) == 1:
        return [compare_engines(before[0], after[0])], {"first": [], "second": []}
    second = {profile.engine: profile for profile in after}
    names = {profile.engine for profile in before} & set(second)
    if not names:
        raise UsageError(
            f"The two have no engine of one name: {', '.join(p.engine for p in before)} and {', '.join(second)}.",
            hint="Give --variant twice: for the first and for the second.",
        )
    alone = {
        "first": [profile.engine for profile in before if profile.engine not in names],
        "second": [name for name in second if name not in names],
    }
    return [compare_engines(p, second[p.engine]) for p in before if p.engine in names], alone


def _tell(values: Mapping[str, Any], show_all: bool) -> Iterator[str]:
    """Lines about one pair of engines."""
    before, after = values["before"], values["after"]
    yield f"{_name(before)} -> {_name(after)}"
    yield f"{'':24} {'before':>14} {'after':>14}"
    for label, key in (
        ("call ms, no profiler", "call_ms"),
        ("sum of the layers, ms", "sum_ms"),
        ("layers", "layers"),
    ):
        yield f"{label:24} {_figure(before[key]):>14} {_figure(after[key]):>14}"
    for label, key in (("reformats", "reformats"), ("layers of no shared node", "others")):
        yield f"{label:24} {_group(before[key]):>14} {_group(after[key]):>14}"
    shown = [piece for piece in values["pieces"] if show_all or piece["changed"] or _moved(piece)]
    if shown:
        yield f"{'ms before':>10} {'after':>8} {'gained':>8}  {'in':14} nodes"
    for piece in shown:
        yield from _tell_piece(piece)
    if same := len(values["pieces"]) - len(shown):
        yield f"{same} parts are the same in both (--all shows them)"
    yield from values["notes"]


def _tell_piece(piece: Mapping[str, Any]) -> Iterator[str]:
    before, after = piece["before"], piece["after"]
    precisions = [",".join(side["precisions"]) for side in (before, after)]
    told = precisions[0] if precisions[0] == precisions[1] else " > ".join(precisions)
    times = f"{_figure(before['ms']):>10} {_figure(after['ms']):>8} {_figure(piece['gained_ms']):>8}"
    yield f"{times}  {told:14} {' + '.join(piece['nodes'])}"
    if before["kernels"] != after["kernels"]:
        yield f"{'':29}kernels: {', '.join(before['kernels'])} -> {', '.join(after['kernels'])}"
    for word, key in (("fused", "fused"), ("no longer fused", "unfused")):
        for group in piece[key]:
            yield f"{'':29}{word}: {' + '.join(group)}"


def _moved(piece: Mapping[str, Any]) -> bool:
    gained = piece["gained_ms"]
    return gained is not None and abs(gained) > _MOVED * max(piece["before"]["ms"], piece["after"]["ms"])


def _name(engine: Mapping[str, Any]) -> str:
    return ", ".join(
        filter(
            None, (engine["engine"], f"{engine['backend']} {engine['version']}".rstrip(), engine["machine"])
        )
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def _group(rows: Mapping[str, Any]) -> str:
    count = len(rows["layers"])
    return str(count) if rows["ms"] is None else f"{count}: {rows['ms']:.3f} ms"
