"""``compare``: did any engine become worse from one bundle, run or report to the next?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekiln.pipeline.cli.damage import untrusted_when_damaged
from edgekiln.pipeline.cli.options import echo_line, fail, json_option, print_document
from edgekiln.runtime.errors import GateError

if TYPE_CHECKING:
    from edgekiln.benchmarks.comparing.compare import Change, Comparison

__all__ = ["compare"]


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of top-1 that may be lost.",
)
@click.option(
    "--max-slowdown",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of speed likewise.",
)
@click.option("--confidence", type=click.FloatRange(0.5, 1, True, True), default=0.95, show_default=True)
@click.option(
    "--other-contract",
    is_flag=True,
    help="Compare answers although pictures are prepared otherwise; speed is left out.",
)
@json_option
def compare(
    before: Path,
    after: Path,
    max_drop: float,
    max_slowdown: float,
    confidence: float,
    other_contract: bool,
    as_json: bool,
) -> None:
    """Compare two bundles, run folders or report.json files, engine by engine. Exits 3 when one became worse.

    Accuracy is paired on the test pictures that both were judged on; a report alone holds no single answers, and is
    compared unpaired. Speed is compared through each run's own PyTorch baseline, on the same kind of machine only,
    with the same torch and baseline. An engine that is gone or broken became worse. Unlike work is refused (exit 2),
    and what cannot be compared is told with the reason.

    \b
    edgekiln compare released/bundle runs/my-photos/bundle --max-drop 0.005
    """
    from edgekiln.benchmarks.comparing.compare import compare_bundles

    with untrusted_when_damaged(f"{before} or {after} cannot be compared"):
        result = compare_bundles(
            before,
            after,
            confidence=confidence,
            max_drop=max_drop,
            max_slowdown=max_slowdown,
            other_contract=other_contract,
        )
        lines = list(_tell(result, confidence))
    if not as_json:
        for line in lines:
            echo_line(line)
    if result.regressions:
        worse = ", ".join(f"{change.engine} ({change.figure})" for change in result.regressions)
        fail(GateError(f"Worse than before: {worse}."), result.to_dict(), as_json)
    if as_json:
        print_document(result.to_dict())


def _tell(result: Comparison, confidence: float) -> Iterator[str]:
    for change in result.changes:
        yield _describe(change, confidence)
    for note in result.notes:
        yield f"note: {note}"
    for word, names in (("only in the first", result.removed), ("only in the second", result.added)):
        if names:
            yield f"{word}: {', '.join(names)}"
    yield f"{len(result.regressions)} regressions"


def _describe(change: Change, confidence: float) -> str:
    from edgekiln.benchmarks.judging.gate import format_confidence

    name = "PyTorch" if change.engine == "baseline" else change.engine
    head = f"{name:20} {change.figure:6} {change.verdict:12}"
    if change.change is None or change.low is None or change.high is None:
        return f"{head} {change.reason}"
    if change.figure == "top1":
        figure = f"{100 * change.change:+.2f} points [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
        span = f"{100 * (change.before or 0):.2f} % to {100 * (change.after or 0):.2f} %"
    else:
        figure = f"{change.change:.3f}x [{change.low:.3f}, {change.high:.3f}]"
        span = f"{change.before or 0:.2f}x to {change.after or 0:.2f}x"
        confidence = 0.95  # always: benchmarks/timing/measurement.py
    return f"{head} {figure} ({format_confidence(confidence)}), {span}; {change.reason}"
