"""Whether another library is faster than our best engine, and how its file was made. Works on JSON values alone.

``main`` prints what several reports say together: `make bench` ends with it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from edgekiln.benchmarks.report.reading import read_report
from edgekiln.runtime.errors import EdgekilnError

__all__ = [
    "FASTER_BELOW",
    "cell_headings",
    "cell_rows",
    "describe_made",
    "describe_peers",
    "describe_together",
    "is_faster",
    "mark_cells",
    "mark_peers",
    "peer_notices",
]

_NONE = "no peer is faster"
FASTER_BELOW = 0.95
"""Of our best engine's time: a peer is called faster where its whole interval lies below."""


def mark_peers(
    peers: Sequence[Mapping[str, Any]],
    variants: Sequence[Mapping[str, Any]],
    benchmark: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """The rows of peers with ``to_best``: ``engine``, and the peer's time over that engine's with its interval.

    Our best is the engine of the lowest median among those that pass, among all that were timed where none does.
    ``to_best`` is ``None`` where nothing compares them; ``faster`` says whether the interval lies below
    ``FASTER_BELOW`` as a whole.
    """
    ratios = (benchmark or {}).get("peer_ratios", {})
    best = _find_best(variants)
    rows = []
    for peer in peers:
        ratio = ratios.get(peer["name"], {}).get(best)
        to_best = None if ratio is None else {"engine": best, **ratio}
        rows.append({**peer, "to_best": to_best, "faster": ratio is not None and is_faster(ratio)})
    return rows


def mark_cells(
    cells: Sequence[Mapping[str, Any]], variants: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The cells of batch size and threads with ``best``, the most productive of our engines there that passes (of all
    where none does), and ``to_best``: by peer the ratio of its time to that engine's, and whether it is ``faster``.
    """
    passing = {v["name"] for v in variants if v["verdict"] == "pass"}
    ours = {v["name"] for v in variants}
    marked = []
    for cell in cells:
        rates = {name: own for name, own in cell["rates"].items() if name in ours and "problem" not in own}
        offered = {name: own for name, own in rates.items() if name in passing} or rates
        best = max(offered, key=lambda name: float(offered[name]["images_per_second"]), default=None)
        ratios = {peer: own[best] for peer, own in cell["ratios"].items() if best in own}
        to_best = {peer: {**ratio, "faster": is_faster(ratio)} for peer, ratio in ratios.items()}
        marked.append({**cell, "best": best, "to_best": to_best})
    return marked


def is_faster(ratio: Mapping[str, float]) -> bool:
    """Whether a peer is faster, by its time over our best engine's."""
    return ratio["high"] < FASTER_BELOW


def _find_best(variants: Sequence[Mapping[str, Any]]) -> str | None:
    timed = [v for v in variants if v.get("latency")]
    offered = [v for v in timed if v["verdict"] == "pass"] or timed
    best = min(offered, key=lambda v: float(v["latency"]["p50_ms"]), default=None)
    return None if best is None else str(best["name"])


def peer_notices(peers: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each peer that is faster than our best engine: by how much, and at what accuracy."""
    return [
        f"{_describe_ratio(peer['name'], peer['to_best'], peer['to_best']['engine'])}{_describe_loss(peer)}."
        for peer in peers
        if peer.get("faster")
    ]


def describe_peers(report: Mapping[str, Any]) -> list[str]:
    """The last lines of a benchmark: which peer is faster, or that none is; empty where no peer was asked for."""
    peers = report.get("peers", ())
    cells = [cell for cell in _cells(report) if cell["to_best"]]
    compared = [peer for peer in peers if peer.get("to_best")]
    faster = [*peer_notices(compared), *_faster_in_cells(peers, cells)]
    if faster:
        return faster
    if not compared and not cells:
        return ["no peer is compared: the timings are invalid, or no engine was timed"] if peers else []
    where = f"{len(cells)} cell{'s' if len(cells) > 1 else ''} of batch size and threads"
    if not compared:  # batch 1 beside PyTorch was too noisy to tell; a cell's intervals are its own
        return [f"{_NONE} in {where}"]
    where = f"at batch 1 and in {where}" if cells else "at batch 1"
    nearest = min(compared, key=lambda peer: float(peer["to_best"]["value"]))
    near = _describe_ratio(nearest["name"], nearest["to_best"], nearest["to_best"]["engine"], "takes")
    return [f"{_NONE} ({len(compared)} compared {where}; the nearest at batch 1: {near})"]


def _faster_in_cells(peers: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    losses = {peer["name"]: _describe_loss(peer) for peer in peers}
    return [
        f"{_name_cell(cell)}: {_describe_ratio(name, ratio, cell['best'])}{losses.get(name, '')}."
        for cell in cells
        for name, ratio in cell["to_best"].items()
        if ratio["faster"]
    ]


def _describe_ratio(name: str, ratio: Mapping[str, Any], best: str, told: str = "is faster: it takes") -> str:
    return f"{name} {told} {_show_ratio(ratio)} of the time of {best}"


def _show_ratio(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _cells(report: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Those of the report, as ``mark_cells`` left them."""
    cells: Sequence[Mapping[str, Any]] = (report.get("benchmark") or {}).get("cells", ())
    return cells


def _name_cell(cell: Mapping[str, Any]) -> str:
    return f"batch {cell['batch']}, {cell['threads']} thread{'s' if cell['threads'] > 1 else ''}"


def cell_headings(report: Mapping[str, Any]) -> list[str]:
    """What the columns of ``cell_rows`` hold; nothing where no cell was timed."""
    peers = dict.fromkeys(peer for cell in _cells(report) for peer in cell["to_best"])
    return ["cell", "our best", "images/s", *peers] if _cells(report) else []


def cell_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Rows: batch and threads, our best engine there and its rate, then each peer's time over that engine's."""
    rows = []
    for cell in _cells(report):
        rate = cell["rates"].get(cell["best"])
        shown = [cell["best"] or "-", f"{rate['images_per_second']:.4g}" if rate else "-"]
        for peer in cell_headings(report)[3:]:
            ratio = cell["to_best"].get(peer)
            mark = " faster" if ratio and ratio["faster"] else ""
            shown.append(f"{_show_ratio(ratio)}{mark}" if ratio else "-")
        rows.append([_name_cell(cell), *shown])
    return rows


def _describe_loss(peer: Mapping[str, Any]) -> str:
    drop = peer.get("drop")
    return "" if drop is None else f", and loses {100 * drop['value']:.2f} points of top-1"


def describe_made(peer: Mapping[str, Any]) -> str:
    """How the file of a peer was made, in a sentence; empty where it ran one of ours."""
    made = peer.get("made")
    if made is None:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    used = made["calibration"]
    pictures = f"; calibrated on {used['images']} pictures (sha256 {used['digest'][:12]})" if used else ""
    return f"{peer['name']}: {made['how']}; {versions}{pictures}."


def describe_together(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of several reports, each with its name: who is faster comes last; one line for all where nobody is."""
    lines = [(str(report["name"]), line) for report in reports for line in describe_peers(report)]
    lines.sort(key=lambda entry: not entry[1].startswith("no "))
    told = [f"{name}: {line}" for name, line in lines]
    free = all(line.startswith(_NONE) for _, line in lines) and len(lines) == len(reports)
    return [*told, _NONE] if free else told


def main() -> None:
    """Entry point: the paths of reports."""
    try:
        reports = [read_report(path) for path in sys.argv[1:]]
    except EdgekilnError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(int(error.exit_code))
    sys.stdout.write("".join(f"{line}\n" for line in describe_together(reports)))
