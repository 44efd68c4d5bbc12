"""The zoo's JSON as a table, and what a row comes to in a few words."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

from reference.markdown import table

from zoo.architectures import ARCHITECTURES

__all__ = ["MIN_AGREEMENT", "render", "summarize"]

MIN_AGREEMENT = 0.9
"""Least share of pictures on which an engine must answer as PyTorch does.

After seconds of training many answers hang on little: this tells an engine that works from one that is broken, not how
much a good one loses.
"""

_ALL_THE_WAY = "all the way"
_ENDS = {
    "crash": "crashed",
    "limit": "went beyond a limit",
    "refused": "refused with a reason",
    "lossy": "lossy",
}
"""The states, the worst first, in words."""

_TOLD_VERSIONS = ("torch", "timm", "torchvision", "onnxruntime", "openvino", "tensorrt-rtx")
_HEADINGS = (
    "architecture @ px", "parameters", "MACs", "top-1", "FP32", "INT8", "onnxruntime INT8", "OpenVINO INT8", "RTX FP16",
    "RTX INT8", "lint", "s",
)  # fmt: skip

Row = Mapping[str, Any]


def summarize(row: Row) -> str:
    """``all the way``, or what ended it: ``crash``, ``limit``, ``refused`` or ``lossy``, where, and why."""
    found = _find_ends(row)
    return "; ".join(found) if found else _ALL_THE_WAY


def _find_ends(row: Row) -> list[str]:
    """The worst first."""
    ends = [
        (event["state"], f"{step}: {event['reason']}")
        for step, event in row["steps"].items()
        if event["state"] != "done"
    ]
    for name, variant in row.get("variants", {}).items():
        if variant["failure"]:
            ends.append(("refused", f"{name}: {variant['failure']}"))
        elif variant["agreement"] is not None and variant["agreement"] < MIN_AGREEMENT:
            share = f"{100 * variant['agreement']:.1f} % of {row['images']} answers"
            ends.append(("lossy", f"{name}: {share} are PyTorch's"))
    order = [*_ENDS]
    return [f"{state}: {text}" for state, text in sorted(ends, key=lambda end: order.index(end[0]))]


def render(document: Mapping[str, Any]) -> str:
    """Markdown: how many went all the way, where and when, the table, and why the others ended."""
    rows = document["rows"]
    ended = {name: told for name, row in rows.items() if (told := summarize(row)) != _ALL_THE_WAY}
    lines = [_describe_row(name, row) for name, row in rows.items()]
    parts = [_wrap(_count(rows, ended)), _wrap(_describe_machine(document)), table(_HEADINGS, lines)]
    if ended:
        parts.append("The others:")
        parts.append("\n".join(_wrap(f"- `{name}`: {told}", "  ") for name, told in ended.items()))
    return "\n\n".join(parts)


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _count(rows: Mapping[str, Row], ended: Mapping[str, str]) -> str:
    """Rows by how they ended, those of the zoo that are not there, and the machine's and the days' names."""
    states = Counter(told.partition(":")[0] for told in ended.values())
    told = [f"{len(rows) - len(ended)} of {len(rows)} went all the way"]
    told += [f"{states[state]} {word}" for state, word in _ENDS.items() if states[state]]
    if not states["crash"]:
        told.append("none crashed")
    sentences = [", ".join(told) + "."]
    if missing := [name for architecture in ARCHITECTURES if (name := architecture.name) not in rows]:
        sentences.append(f"{len(missing)} of the zoo's {len(ARCHITECTURES)} have not been run yet.")
    return " ".join(sentences)


def _describe_machine(document: Mapping[str, Any]) -> str:
    """For example: Intel Xeon, 2 cores, VNNI; Python 3.11, torch 2.14.1; 2026-11-30."""
    about = document["machine"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in _TOLD_VERSIONS)
    days = sorted({row["date"] for row in document["rows"].values()})
    vnni = "with VNNI" if about["vnni"] else "without VNNI"
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    return (
        f"Made on {when}, on {about['cpu']}, {about['cores']} cores, {vnni}; "
        f"Python {about['python']}, {versions}."
    )


def _describe_row(name: str, row: Row) -> list[str]:
    variants = row.get("variants", {})
    graph = variants.get("fp32", {})
    return [
        f"`{name}`" + ("" if row["weights"] == "none" else ", ImageNet's weights"),
        f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else "-",
        f"{graph['macs'] / 1e6:.0f} M" if graph.get("macs") else "-",
        f"{100 * row['top1']:.1f} %" if "top1" in row else "-",
        _megabytes(graph.get("bytes")),
        _megabytes(variants.get("int8", {}).get("bytes")),
        *(_describe_engine(name, row) for name in ("int8", "int8-openvino", "fp16-rtx", "int8-rtx")),
        str(variants["int8-rtx"]["lint"]) if "int8-rtx" in variants else "-",
        f"{row['seconds']:.0f}",
    ]


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


def _describe_engine(name: str, row: Row) -> str:
    """Audited share in the asked precision, and agreement; or the word for what ended it."""
    variant = row.get("variants", {}).get(name)
    if variant is None:
        return str(row["steps"].get(name, {"state": "-"})["state"])
    if variant["failure"]:
        return "refused"
    told = [
        f"{100 * variant[key]:.1f} %" if variant[key] is not None else "-" for key in ("share", "agreement")
    ]
    return " / ".join(told)
