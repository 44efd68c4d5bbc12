"""The document as text for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekiln.pipeline.gpu_suite.contenders import BASELINE, GRAPHED

__all__ = ["render"]

_MET = {True: "met", False: "missed", None: "not decided"}


def render(document: Mapping[str, Any]) -> str:
    """Parts, figures and goals; units stand in the headings."""
    return "\n".join(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    parts = document["parts"]
    gpu = ((parts.get("machine") or {}).get("result") or {}).get("gpu")
    if gpu:
        yield f"GPU: {gpu['name']} (SM {gpu['sm']})"
    elif "machine" in parts:
        yield f"GPU: none. {document.get('problem') or ''}"
    yield ""
    for name, part in parts.items():
        told = f" ({part['seconds']:.0f} s)" if part.get("seconds") else ""
        yield f"{name:34} {part['state']:8} {_first_line(part['reason'])}".rstrip() + told
    for name, part in parts.items():
        yield from _details(name, part.get("result") or {})
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


def _details(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """What did not go well inside a part, whether or not the part as a whole did."""
    kind = name.partition(".")[0]
    if kind in {"make", "graphs", "engines", "dynamic"}:
        for file, entry in result.items():
            if entry["state"] != "done":
                yield f"  {name}, {file}: {entry['state']}: {_first_line(entry['reason'])}"
    elif kind in {"inputs", "layers", "soak"}:
        for entry in result.get("failures", ()):
            yield f"  {name}, {entry['test']}: {_first_line(entry['reason'])}"
    if kind == "soak" and result:
        yield (
            f"  {result['soaked']}: {result['calls']} calls in {result['seconds']:.0f} s from {result['threads']} "
            f"threads, p50 {result['p50_ms']:.2f} ms, p99 {result['p99_ms']:.2f} ms"
        )


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
    if result.get("baseline") is None:
        yield f"  {_first_line(result.get('baseline_problem'))}"
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
    eager = ratios.get(BASELINE)
    graph = ratios.get(GRAPHED)
    device, answers = entry["device_p50_ms"], entry["answers"]
    return [
        *(f"{entry[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
        "-" if device is None else f"{device:.3f}",
        f"{entry['images_per_second']:.0f}",
        "-" if eager is None else f"{eager['value']:.2f}",
        "-" if eager is None else f"{eager['low95']:.2f}..{eager['high95']:.2f}",
        "-" if graph is None else f"{graph['value']:.2f}",
        "-" if answers is None else f"{answers['max_difference_of_logit_range']:.1e}",
    ]
