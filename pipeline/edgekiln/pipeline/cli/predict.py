"""``predict``: a bundle's answers for pictures, as a table, CSV or JSON lines."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekiln.pipeline.cli.options import (
    as_printable,
    describe_error,
    device_option,
    fail,
    json_option,
    print_document,
    quiet_option,
    trusted_key_option,
)
from edgekiln.pipeline.cli.picture_sources import PictureSearch
from edgekiln.runtime.errors import ImageError, UsageError

if TYPE_CHECKING:
    from edgekiln.runtime.serving.classifier import Classifier
    from edgekiln.runtime.serving.prediction import Candidate, Selection

__all__ = ["predict"]

_ROWS_TOGETHER = 32  # of the table, so that its columns line up and a long one still appears while it grows
_ROWS_SECONDS = 0.5  # the longest that a row waits for others


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
@device_option
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

    IMAGES are files, folders (read at any depth, links followed), quoted globs, or - for one picture's bytes on
    standard input. Exits 2 when a picture could not be read or a name led to none; the others are answered.

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
    pictures = PictureSearch(images, lists)
    with load(bundle, trusted_keys=trusted_keys or None, **engine) as classifier:
        selection = classifier.variant
        if not as_json and not quiet:
            _tell_selection(selection)
        tally, top = _Tally(), min(top, len(classifier.contract.classes))
        answers = tally.watch(_classify(classifier, pictures, top))
        if as_json:
            _finish_document(list(answers), selection, pictures, tally)
            return
        try:
            _WRITERS[form or "table"](answers, top)
        finally:  # also of an answer cut short, by Ctrl-C say
            _tell_rest(pictures, tally)
    tally.check()


def _tell_selection(selection: Selection) -> None:
    """Which engine answers, and why that one, on stderr."""
    click.echo(as_printable(f"variant {selection.name} ({selection.backend}): {selection.reason}"), err=True)
    if selection.notice:
        click.echo(as_printable(f"variant {selection.name} was {selection.notice}"), err=True)


def _tell_rest(pictures: PictureSearch, tally: _Tally) -> None:
    """What has no answer, on stderr."""
    for sentence in pictures.describe_passed_over():
        click.echo(as_printable(sentence), err=True)
    for failure in tally.failures:
        name, text = as_printable(failure.name), as_printable(str(failure.error))
        click.echo(f"unreadable: {text if name in text else f'{name}: {text}'}", err=True)


def _classify(classifier: Classifier, pictures: PictureSearch, top: int) -> Iterator[_Answer]:
    pictures.camera = classifier.contract.sensor_bits is not None
    for name, picture in pictures:
        if isinstance(picture, ImageError):
            yield _Answer(name, (), picture)
            continue
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
            f"{len(self.failures)} of {self.pictures} picture{'' if self.pictures == 1 else 's'} could not be read.",
            reason=first.reason,
            hint="The others are answered." if len(self.failures) < self.pictures else None,
            path=first.path,
        )

    def check(self) -> None:
        """Raise that error."""
        if problem := self.problem():
            raise problem


def _finish_document(
    answers: Sequence[_Answer], selection: Selection, pictures: PictureSearch, tally: _Tally
) -> None:
    values = {
        "variant": {"name": selection.name, "backend": selection.backend, "reason": selection.reason},
        "predictions": [answer.to_dict() for answer in answers if answer.error is None],
        "failures": [
            {"path": answer.name, "reason": answer.error.reason, "message": answer.error.message}
            for answer in answers
            if answer.error is not None
        ],
        "passed_over": dict(sorted(pictures.passed_over.items())),
        "left_out": {why.name.lower().replace("_", "-"): count for why, count in pictures.left_out.items()},
    }
    if problem := tally.problem():
        fail(problem, values, as_json=True)
    print_document(values)


# --------------------------------------------------------------------------------------------------------------
# Formats: each writes an answer as soon as it can


def _write_table(answers: Iterator[_Answer], top: int) -> None:
    table = _Table(top)
    try:
        for answer in answers:
            if answer.error is None:
                table.add(answer)
    finally:
        table.close()


class _Table:
    """Rows are printed some together, so that their columns line up, and none later than half a second.

    A timer's thread prints where the next picture is still awaited, from a pipe say; one lock guards the rows.
    """

    def __init__(self, top: int) -> None:
        self._widths = [0] * (1 + top)  # of the path and of each label
        self._rows: list[list[str]] = []  # path, label, score, label, score, ...
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(self, answer: _Answer) -> None:
        """Print it soon."""
        with self._lock:
            scored = [cell for c in answer.top for cell in (as_printable(c.label), f"{c.score:.4f}")]
            self._rows.append([as_printable(answer.name), *scored])
            if len(self._rows) == _ROWS_TOGETHER:
                self._print()
            elif self._timer is None:
                self._timer = threading.Timer(_ROWS_SECONDS, self._print_late)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Print the rest."""
        with self._lock:
            self._print()

    def _print_late(self) -> None:
        # A reader that went away is noticed by the next print of the main thread, where it can end the command.
        with self._lock, contextlib.suppress(OSError):
            self._print()

    def _print(self) -> None:
        """Aligned among themselves and with those before, as far as their widths allow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for row in self._rows:
            self._widths = [max(w, len(text)) for w, text in zip(self._widths, _texts(row), strict=True)]
        lines = [_align(row, self._widths) for row in self._rows]
        if lines:
            click.echo("\n".join(lines))
        self._rows.clear()


def _texts(row: Sequence[str]) -> list[str]:
    """The cells of a row whose widths vary: the path and the labels."""
    return [row[0], *row[1::2]]


def _align(row: Sequence[str], widths: Sequence[int]) -> str:
    path, *labels = [f"{text:{width}}" for text, width in zip(_texts(row), widths, strict=True)]
    return "  ".join([path, *(f"{label} {score}" for label, score in zip(labels, row[2::2], strict=True))])


def _write_csv(answers: Iterator[_Answer], top: int) -> None:
    ranks = ["", *(f"_{i}" for i in range(2, top + 1))]
    _echo_raw(_csv_line(["path", *(f"{name}{rank}" for rank in ranks for name in ("label", "score"))]))
    for answer in answers:
        if answer.error is None:
            cells = [cell for c in answer.top for cell in (c.label, f"{c.score:.6f}")]
            _echo_raw(_csv_line([answer.name, *cells]))


def _csv_line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)  # its own characters are those that it quotes
    return buffer.getvalue().removesuffix("\r\n")


def _echo_raw(line: str) -> None:
    """As it is: click would leave out what looks like a colour, and a file's name would be another's."""
    click.echo(line, color=True)


def _write_lines(answers: Iterator[_Answer], top: int) -> None:
    for answer in answers:
        _echo_raw(json.dumps(answer.to_dict()))


_WRITERS: dict[str, Callable[[Iterator[_Answer], int], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "jsonl": _write_lines,
}
