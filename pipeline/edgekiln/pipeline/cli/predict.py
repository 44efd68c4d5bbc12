"""``predict``: a bundle's answers for pictures, as a table, CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import (
    describe_error,
    fail,
    json_option,
    print_document,
    quiet_option,
    trusted_key_option,
)
from edgekiln.pipeline.cli.picture_sources import find_pictures
from edgekiln.runtime.errors import ImageError, UsageError

if TYPE_CHECKING:
    from edgekiln.runtime.classifier import Candidate, Classifier, Selection

__all__ = ["predict"]

_ROWS_TOGETHER = 32  # of the table, so that its columns line up and a long one still appears while it grows


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of one picture: its best classes, or why it could not be read."""

    name: str
    top: tuple[Candidate, ...]
    error: ImageError | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        if self.error is not None:
            return {"path": self.name, "error": describe_error(self.error)}
        return {
            "path": self.name,
            "top": [{"label": c.label, "score": round(c.score, 6)} for c in self.top],
        }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1)
@click.option(
    "--from-file", "lists", multiple=True, metavar="LIST", help="File with a path per line; - is stdin."
)
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes to print.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl"]),
    help="How answers are printed  [default: table]",
)
@click.option("--variant", help="Take this engine instead of the preferred one.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Only engines for this device.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--allow-unverified", is_flag=True, help="With --variant: also one whose gate did not pass.")
@trusted_key_option
@quiet_option
@json_option
def predict(  # one argument for each option
    bundle: Path,
    images: Sequence[str],
    lists: Sequence[str],
    top: int,
    form: str | None,
    trusted_keys: Sequence[Path],
    quiet: bool,
    as_json: bool,
    **engine: Any,
) -> None:
    """Classify pictures with a bundle.

    IMAGES are files, folders (read at any depth), quoted globs, or - for one picture's bytes on standard input.
    Exits 2 when a picture could not be read; the others are answered.

    \b
    edgekiln predict runs/traffic-lights/bundle photo.jpg --top 3
    edgekiln predict runs/traffic-lights/bundle photos --format csv > answers.csv
    edgekiln predict runs/traffic-lights/bundle 'photos/**/*.jpg' --format jsonl
    find photos -name '*.jpg' | edgekiln predict runs/traffic-lights/bundle --from-file -
    """
    from edgekiln.runtime import load

    if not images and not lists:
        raise UsageError("No picture was named.", hint="Give files, folders, globs, - or --from-file LIST.")
    if as_json and form is not None:
        raise UsageError(
            "--json is one document; --format writes one row a picture.", hint="Give one of them."
        )
    pictures = find_pictures(images, lists)
    with load(bundle, trusted_keys=trusted_keys or None, **engine) as classifier:
        selection = classifier.variant
        if not as_json and not quiet:
            click.echo(f"variant {selection.name} ({selection.backend}): {selection.reason}", err=True)
        tally, top = _Tally(), min(top, len(classifier.contract.classes))
        answers = tally.watch(_classify(classifier, pictures, top))
        if as_json:
            _finish_document(list(answers), selection, tally)
            return
        _WRITERS[form or "table"](answers, top)
    for failure in tally.failures:
        click.echo(f"unreadable: {failure.name}: {failure.error}", err=True)
    tally.check()


def _classify(
    classifier: Classifier, pictures: Iterator[tuple[str, Path | bytes]], top: int
) -> Iterator[_Answer]:
    for name, picture in pictures:
        try:
            yield _Answer(name, classifier.predict(picture).top(top))
        except ImageError as error:
            yield _Answer(name, (), error)


class _Tally:
    """Counts the answers that pass, and keeps those that are failures."""

    def __init__(self) -> None:
        self.pictures = 0
        self.failures: list[_Answer] = []

    def watch(self, answers: Iterator[_Answer]) -> Iterator[_Answer]:
        """The same answers."""
        for answer in answers:
            self.pictures += 1
            if answer.error is not None:
                self.failures.append(answer)
            yield answer

    def problem(self) -> ImageError | None:
        """The error that stands for all failures; ``None`` where there was none."""
        if not self.failures:
            return None
        first = self.failures[0].error
        assert first is not None  # only failures are kept
        return ImageError(
            f"{len(self.failures)} of {self.pictures} pictures could not be read.",
            reason=first.reason,
            hint="The others are answered." if len(self.failures) < self.pictures else None,
            path=first.path,
        )

    def check(self) -> None:
        """Raise that error."""
        if problem := self.problem():
            raise problem


def _finish_document(answers: Sequence[_Answer], selection: Selection, tally: _Tally) -> None:
    values = {
        "variant": {"name": selection.name, "backend": selection.backend, "reason": selection.reason},
        "predictions": [answer.to_dict() for answer in answers if answer.error is None],
        "failures": [
            {"path": answer.name, "reason": answer.error.reason, "message": answer.error.message}
            for answer in answers
            if answer.error is not None
        ],
    }
    if problem := tally.problem():
        fail(problem, values, as_json=True)
    print_document(values)


# --------------------------------------------------------------------------------------------------------------
# Formats: each writes an answer as soon as it can


def _write_table(answers: Iterator[_Answer], top: int) -> None:
    rows: list[_Answer] = []
    widths = [0] * (1 + top)  # of the path and of each label
    for answer in answers:
        if answer.error is None:
            rows.append(answer)
        if len(rows) == _ROWS_TOGETHER:
            _print_rows(rows, widths)
            rows.clear()
    _print_rows(rows, widths)


def _print_rows(rows: Sequence[_Answer], widths: list[int]) -> None:
    """Aligned among themselves and with those before, as far as their widths allow."""
    for row in rows:
        for i, text in enumerate((row.name, *(c.label for c in row.top))):
            widths[i] = max(widths[i], len(text))
    for row in rows:
        cells = [f"{c.label:{width}} {c.score:.4f}" for c, width in zip(row.top, widths[1:], strict=True)]
        click.echo("  ".join([f"{row.name:{widths[0]}}", *cells]))


def _write_csv(answers: Iterator[_Answer], top: int) -> None:
    ranks = ["", *(f"_{i}" for i in range(2, top + 1))]
    click.echo(_csv_line(["path", *(f"{name}{rank}" for rank in ranks for name in ("label", "score"))]))
    for answer in answers:
        if answer.error is None:
            cells = [cell for c in answer.top for cell in (c.label, f"{c.score:.6f}")]
            click.echo(_csv_line([answer.name, *cells]))


def _csv_line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()


def _write_lines(answers: Iterator[_Answer], top: int) -> None:
    for answer in answers:
        click.echo(json.dumps(answer.to_dict()))


_WRITERS: dict[str, Callable[[Iterator[_Answer], int], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "jsonl": _write_lines,
}
