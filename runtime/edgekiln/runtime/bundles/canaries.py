"""What an engine answered to made pictures where it was judged, and whether one that is open here answers the same.

A library of another version, or on another processor, may take another kernel, and a kernel may be wrong: in batches
only, for one class only. Nothing else of a bundle would tell. How tolerances are found is in docs/concepts.md; this
module holds answers against them. It knows no library.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from edgekiln.runtime.bundles.canary_inputs import CANARIES, CANARY_RECIPE, digest_frames, make_canaries
from edgekiln.runtime.errors import EngineError, NonFiniteError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Logits

__all__ = [
    "ALONE",
    "BATCH",
    "BATCH_SIZES",
    "Call",
    "CanaryRecord",
    "CanaryResult",
    "check_calls",
    "check_canaries",
    "decode_logits",
    "encode_logits",
    "plan_calls",
    "plan_few_calls",
]

BATCH_SIZES = (1, 2, 3, 5, len(CANARIES))
"""In which a thorough check asks all pictures: one alone, an even, an odd, a prime one, and all at once."""

Call = tuple[int, ...]
"""The pictures of one call of an engine, by their numbers."""
ALONE: tuple[Call, ...] = ((0,), (1,))
BATCH: Call = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """A variant's answers, and how far others may lie from them.

    Attributes:
        recipe: version of the rule that made the pictures; another one than ``CANARY_RECIPE`` cannot be asked here.
        inputs: sha256 of each picture, as hex.
        answers: float32 (pictures, classes), each picture alone.
        tolerances: for each picture, the largest |difference| of a logit that is no fault.
    """

    recipe: int
    inputs: tuple[str, ...]
    answers: Logits = field(repr=False, compare=False)  # arrays have no single truth value
    tolerances: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the answers are exact."""
        return {
            "recipe": self.recipe,
            "inputs": list(self.inputs),
            "answers": encode_logits(self.answers),
            "tolerances": list(self.tolerances),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classes: int) -> CanaryRecord:
        """What ``to_dict`` gave, for an engine of so many classes.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        recipe, inputs, tolerances = values["recipe"], tuple(values["inputs"]), tuple(values["tolerances"])
        if type(recipe) is not int or not all(isinstance(digest, str) for digest in inputs):
            raise TypeError("its canaries name no recipe or no pictures")
        if recipe == CANARY_RECIPE and len(inputs) != len(CANARIES):
            raise ValueError(f"its canaries are {len(inputs)} pictures, recipe {recipe} has {len(CANARIES)}")
        if len(tolerances) != len(inputs) or not all(0 < value < 1e30 for value in tolerances):
            raise ValueError("its canaries have no tolerance above 0 for each picture")
        return cls(recipe, inputs, decode_logits(values["answers"], (len(inputs), classes)), tolerances)


def encode_logits(logits: Logits) -> str:
    """Base64 of little-endian float32, row by row: exact, and a third of the length of decimal figures."""
    return base64.b64encode(logits.astype("<f4").tobytes()).decode()


def decode_logits(text: str, shape: tuple[int, int]) -> Logits:
    """float32 of ``shape``, read-only, from what ``encode_logits`` gave; raises ValueError where it is not that."""
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
        raise ValueError(f"canaries hold {values.size} answers, wanted {shape[0]} x {shape[1]} finite ones")
    logits: Logits = values.reshape(shape).astype(np.float32, copy=False)
    return logits


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """What came of asking an engine.

    Attributes:
        pictures: how many different ones were asked; 0 where ``unasked`` says why none was.
        calls: of the engine.
        worst: the largest |difference| of a logit as a share of its picture's tolerance; at most 1 where all is well,
            infinite where an answer was not finite or did not come.
        max_difference: the largest |difference| of a logit; infinite as ``worst``.
        wrong_sizes: the batch sizes in which an answer was wrong, ascending.
        problem: what is wrong, in a clause; empty where nothing is.
        unasked: why it could not be asked, in a clause; empty where it was.
        seconds: that it took, with the making of the pictures.
    """

    pictures: int
    calls: int
    worst: float
    max_difference: float
    wrong_sizes: tuple[int, ...]
    problem: str
    unasked: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing wrong was found."""
        return not self.problem


def check_canaries(session: Session, record: CanaryRecord, *, thorough: bool = True) -> CanaryResult:
    """Ask an open engine what it was asked where it was judged, in each of its static batch sizes, too.

    Args:
        session: the engine, of the same frame shape and classes as ``record``.
        record: of its variant.
        thorough: all pictures in each of ``BATCH_SIZES``; else what ``load`` asks.

    Raises:
        EdgekilnError: the engine cannot be asked: it is closed, or memory or the device is lost. What its library
            refuses to compute, and NaN, are wrong answers and raise nothing.
    """
    return check_calls(session, record, plan_calls(session) if thorough else plan_few_calls(session))


def plan_calls(session: Session) -> Iterator[Call]:
    """Which pictures go into which call of a thorough check, by their numbers."""
    for size in BATCH_SIZES:
        for start in range(0, len(CANARIES), size):
            yield tuple(range(start, min(start + size, len(CANARIES))))
    yield from _plan_static(session, len(CANARIES))


def plan_few_calls(session: Session, *, batch: bool = True) -> tuple[Call, ...]:
    """What ``load`` asks: two pictures alone, four as one batch, and the same four in each static batch size."""
    return (*ALONE, *([BATCH] if batch else []), *_plan_static(session, len(BATCH)))


def _plan_static(session: Session, pictures: int) -> Iterator[Call]:
    """A call of each batch size that has a model of its own: so many pictures, again and again, or the first of them.

    OpenVINO's sessions alone may have such sizes; the engines of TensorRT's each take a range, which is asked anyway.
    """
    sizes: Sequence[int] = getattr(session, "static_batches", ())
    for size in sizes:
        for start in range(0, pictures, size):
            yield tuple((start + place) % pictures for place in range(size))


def check_calls(session: Session, record: CanaryRecord, calls: Iterable[Call]) -> CanaryResult:
    """``check_canaries`` for these calls."""
    start = perf_counter()
    if record.recipe != CANARY_RECIPE:
        unasked = f"its canaries are of recipe {record.recipe}, this edgekiln makes those of {CANARY_RECIPE}"
        return CanaryResult(0, 0, 0.0, 0.0, (), "", unasked, perf_counter() - start)
    planned = list(calls)
    asked = 1 + max(max(call) for call in planned)
    frames = make_canaries(*session.frame_shape, range(asked))
    if digest_frames(frames) == record.inputs[:asked]:
        findings = [_ask(session, record, frames, call) for call in planned]
    else:
        other = (
            "the made pictures are not those that it was judged with: another size, or numpy computes wrongly"
        )
        findings = [_Finding(0, np.inf, np.inf, other)]
    worst = max(findings, key=lambda finding: finding.share)
    wrong = tuple(sorted({finding.batch for finding in findings if finding.problem} - {0}))
    problem = worst.problem
    if wrong:
        count = sum(bool(finding.problem) for finding in findings)
        sizes = ", ".join(map(str, wrong))
        problem = f"{problem}; wrong in {count} of {len(findings)} calls, in batches of {sizes}"
    furthest = max(finding.difference for finding in findings)
    seconds = perf_counter() - start
    return CanaryResult(asked, len(planned), worst.share, furthest, wrong, problem, "", seconds)


@dataclass(frozen=True, slots=True)
class _Finding:
    """Of one call: pictures in it, largest difference and largest share of a tolerance, and what is wrong."""

    batch: int
    difference: float
    share: float
    problem: str


def _ask(session: Session, record: CanaryRecord, frames: Any, call: Call) -> _Finding:
    size, pictures = len(call), list(call)
    expected = record.answers[pictures]
    try:
        logits = session.run(frames[pictures])
    except (EngineError, NonFiniteError) as error:
        return _Finding(size, float("inf"), float("inf"), error.message)
    if logits.shape != expected.shape:
        return _Finding(size, float("inf"), float("inf"), f"it gives {logits.shape}, wanted {expected.shape}")
    difference = np.abs(logits.astype(np.float64) - expected)
    difference[~np.isfinite(difference)] = np.inf
    shares = difference / np.array(record.tolerances)[pictures, np.newaxis]
    row, column = np.unravel_index(shares.argmax(), shares.shape)
    share, problem = float(shares[row, column]), ""
    if share > 1:
        problem = (
            f"for the picture {CANARIES[pictures[row]][0]!r} logit {int(column)} is "
            f"{logits[row, column]:.4g}, where it was judged {expected[row, column]:.4g} "
            f"(allowed: {record.tolerances[pictures[row]]:.2g} apart)"
        )
    return _Finding(size, float(difference.max()), share, problem)
