"""The document as text for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["render"]

_MET = {True: "met", False: "missed", None: "not decided"}


def render(document: Mapping[str, Any]) -> str:
    """Parts, figures and goals; units stand in the headings."""
    return "\n".join(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    parts = document["parts"]
    gpu = ((parts.get("machine") or {}).get("result") or {}).get("gpu")
    yield f"GPU: {gpu['name']} (SM {gpu['sm']})" if gpu else f"GPU: none. {document.get('problem') or ''}"
    yield ""
    for name, part in parts.items():
        yield f"{name:24} {part['state']:8} {_first_line(part['reason'])}".rstrip()
    yield from _tests(parts.get("tests") or {})
    yield from _rtx(parts.get("rtx-engines") or {})
    for name, part in parts.items():
        if name.startswith("bench.") and part["result"]:
            yield from _bench(name, part["result"])
    if "goals" in document:
        yield ""
        for goal in document["goals"]:
            figure = "-" if goal["figure"] is None else f"{goal['figure']:.3f}"
            yield f"{_MET[goal['met']]:12} {figure:>8}  {goal['goal']} ({_first_line(goal['reason'])})"


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0][:140]


def _tests(part: Mapping[str, Any]) -> Iterator[str]:
    result = part.get("result")
    if result:
        yield ""
        yield f"tests: {result['passed']} passed, {result['failed']} failed, {result['skipped']} skipped"
        for entry in [*result["failures"], *result["not_collected"]]:
            yield f"  {entry['test']}: {_first_line(entry['reason'])}"


def _rtx(part: Mapping[str, Any]) -> Iterator[str]:
    answers = part.get("result") or {}
    if answers:
        yield ""
        yield "TensorRT-RTX engines on this GPU:"
    for name, answer in answers.items():
        told = {key: answer.get(key) for key in ("loads", "runs", "right")}
        yield f"  {name}: {told} {_first_line(answer.get('message') or answer.get('reason'))}".rstrip()


def _bench(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{name}: {result['validity']['state']} {'; '.join(result['validity']['reasons'])}".rstrip()
    heading = ("p50 ms", "p90 ms", "p99 ms", "GPU ms", "images/s", "x eager", "(95 %)", "x graph", "max diff")
    yield f"  {'':28}" + "".join(f"{text:>{_width(i)}}" for i, text in enumerate(heading))
    for contender, entry in result["contenders"].items():
        if entry["state"] != "done":
            yield f"  {contender:28} {entry['state']}: {_first_line(entry['reason'])}"
            continue
        yield f"  {contender:28}" + "".join(
            f"{text:>{_width(i)}}" for i, text in enumerate(_row(entry, result))
        )


def _width(column: int) -> int:
    return 16 if column == 6 else 10


def _row(entry: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    ratios = entry["times_faster_than"]
    eager = ratios.get(result["baseline"])
    graph = next((ratio for other, ratio in ratios.items() if other != result["baseline"]), None)
    device = entry["device_p50_ms"]
    return [
        *(f"{entry[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
        "-" if device is None else f"{device:.3f}",
        f"{entry['images_per_second']:.0f}",
        "-" if eager is None else f"{eager['value']:.2f}",
        "-" if eager is None else f"{eager['low95']:.2f}..{eager['high95']:.2f}",
        "-" if graph is None else f"{graph['value']:.2f}",
        f"{entry['answers']['max_difference_of_logit_range']:.1e}",
    ]
