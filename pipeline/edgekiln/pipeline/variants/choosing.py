"""Which method takes the activation ranges from the calibration pictures, where the recipe leaves it open.

Decided by what the graphs answer next to the FP32 graph on training pictures that do not calibrate; val and test judge
nothing here. Graphs are computed as written (``export/precision/simulation.py``), so that no machine's kernels decide
and libraries that take the same file get the same method; and whether all this is cheap enough is reckoned from the
network, never timed. Knows no quantizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.child import Child
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.recipe.variants import AUTO_SECONDS
from edgekiln.pipeline.variants.calibrating import MOST_HELD_OUT, hold_out
from edgekiln.pipeline.variants.isolated import IsolatedSession
from edgekiln.pipeline.variants.searching import answer
from edgekiln.pipeline.workspace.stage_files import MODEL_NAME, StageContext
from edgekiln.runtime.errors import BuildError, EngineError, GateError
from edgekiln.runtime.spec import Frames, Logits

if TYPE_CHECKING:
    from edgekiln.export.calibration import CalibrationSet

__all__ = ["Trial", "beats", "choose_method", "compare", "estimate_seconds"]

Quantize = Callable[[str, "CalibrationSet"], None]

_LEAST_HELD_OUT = 64
_FIRST_IMAGES = 64
"""Calibration pictures that a challenger is tried with at first; the best one is then calibrated on all."""
_ERRORS = 2.0
"""Standard errors by which a challenger must be ahead: about one in forty is by chance."""
_MARGIN = 0.25
"""Share of the divergence that a challenger must save besides: less is not worth another graph."""
_CALIBRATING_NS, _ANSWERING_NS = 1.0, 0.25
"""For each MAC of a picture, on one core: histograms of all activations took 0.2 to 0.9 ns (ResNet-18 and
EfficientNet-Lite0 at 64 pixels, MobileNetV2 at 128; an Intel Xeon, busy). An answer is reckoned at a quarter."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a graph answers on the held-out pictures, next to the FP32 graph.

    Attributes:
        differs: whether the top-1 answer is another, bool (N,).
        divergence: Kullback-Leibler divergence from the FP32 answer, nats, float64 (N,).
    """

    differs: NDArray[np.bool_]
    divergence: NDArray[np.float64]

    @property
    def rank(self) -> tuple[int, float]:
        """Lower is better: other answers, then the mean divergence."""
        return int(self.differs.sum()), float(self.divergence.mean())


def beats(challenger: Trial, simple: Trial) -> bool:
    """Whether the challenger agrees with FP32 clearly better than the simple method.

    That is: by over two standard errors it has fewer other answers (paired: McNemar's statistic over 2); or it has no
    more of them, and saves a quarter of the divergence at least, by over two standard errors of the paired difference.
    """
    won = int((simple.differs & ~challenger.differs).sum())
    lost = int((challenger.differs & ~simple.differs).sum())
    if abs(won - lost) > _ERRORS * (won + lost) ** 0.5:
        return won > lost
    saved = simple.divergence - challenger.divergence
    clear = saved.mean() > _ERRORS * saved.std(ddof=1) / len(saved) ** 0.5
    return bool(lost <= won and clear and saved.mean() >= _MARGIN * simple.divergence.mean())


def estimate_seconds(macs: int, methods: int, calibration: int, held_out: int = MOST_HELD_OUT) -> float:
    """Seconds of one core that the comparison may take, besides the simple method's own calibration.

    That each graph is also written, loaded and optimized is left out: some seconds for a network of 50 layers.

    Args:
        macs: of the network, for one picture.
        methods: that are compared, the simple one included.
        calibration: pictures to calibrate with.
        held_out: pictures to compare on. The FP32 graph, each method and the best once more answer them.
    """
    calibrating = (methods - 1) * min(_FIRST_IMAGES, calibration) + calibration
    return macs * (_CALIBRATING_NS * calibrating + _ANSWERING_NS * held_out * (methods + 2)) * 1e-9


def choose_method(
    context: StageContext,
    variant: VariantSettings,
    calibration: CalibrationSet,
    tools: tuple[Quantize, Child],
    about: dict[str, Any],
) -> Any:  # the backend's own literals
    """The variant's method of calibration; the stage's graph is then what it makes of all calibration pictures.

    Args:
        context: of the stage.
        variant: an INT8 one; with ``calibration`` other than ``auto`` nothing is compared.
        calibration: the pictures; each method's ranges are those of a recipe that names it.
        tools: what writes the stage's graph by a method, and the process that graphs are run in. Of all that the
            method which is returned has made, its last is the stage's graph.
        about: gets ``method`` and, where there was a choice, ``choice`` in its ``calibration``.

    Raises:
        What making the simple method's graph raises, and ResourceError. A challenger that fails is out, and told.
    """
    quantize, child = tools
    simple = variant.calibration_methods[0]
    method = simple if variant.calibration == "auto" else variant.calibration
    about["calibration"]["method"] = method
    context.progress.advance(0, 1, f"calibrating on {len(calibration.frames)} images")
    quantize(method, calibration)
    if variant.calibration != "auto":
        return method
    race = _Race(context, calibration, quantize, child)
    reason = _refuse(context, variant, len(calibration.frames)) or race.prepare()
    if reason is None:
        method = race.run(variant.calibration_methods)
    choice = {
        "reason": reason,
        "images": len(race.held_out),
        "methods": race.figures,
        "kept": method,
        "sentence": _tell(method, simple, reason, race),
    }
    about["calibration"] |= {"method": method, "choice": choice}
    context.progress.message(f"  {variant.name}, calibration: {choice['sentence']}")
    if method != simple:
        about.setdefault("notices", []).append(f"{variant.name}, calibration: {choice['sentence']}")
    return method


def _refuse(context: StageContext, variant: VariantSettings, images: int) -> str | None:
    """Why nothing is compared, where it would cost too much and was not asked for."""
    import onnx

    from edgekiln.export.audits.macs import count_macs

    if variant.calibration_method == "auto":
        return None
    macs = sum(count_macs(onnx.load(context.inputs["export"] / MODEL_NAME)).values())
    seconds = estimate_seconds(macs, len(variant.calibration_methods), images)
    if seconds <= AUTO_SECONDS:
        return None
    return (
        f"comparing methods on a network of {macs / 1e6:.0f} million MACs is reckoned at {seconds:.0f} s of one core, "
        f'over {AUTO_SECONDS:.0f}; calibration_method = "auto" does it all the same'
    )


class _Race:
    """The methods, tried one after the other."""

    def __init__(
        self,
        context: StageContext,
        calibration: CalibrationSet,
        quantize: Quantize,
        child: Child,
    ) -> None:
        from edgekiln.export.precision.simulation import Simulation

        self.held_out: Frames = calibration.frames[:0]
        self.figures: dict[str, dict[str, Any]] = {}
        self._context, self._calibration = context, calibration
        self._quantize, self._open = quantize, partial(IsolatedSession, child, Simulation)
        self._graphs: dict[str, bytes] = {}

    def prepare(self) -> str | None:
        """Hold pictures out; why that is not possible, where it is not."""
        held_out = hold_out(self._context, self._calibration)
        if len(held_out) < _LEAST_HELD_OUT:
            return (
                f"methods are compared on training pictures that do not calibrate; {len(held_out)} are left, wanted "
                f"{_LEAST_HELD_OUT} at least"
            )
        self.held_out = held_out
        return None

    def run(self, methods: tuple[str, ...]) -> str:
        """The winner's name; the stage's graph is then its own."""
        winner, path = methods[0], self._context.folder / MODEL_NAME
        try:
            winner = self._find_winner(*methods)
        finally:  # the simple one's graph stands as evidence, also where a library ends this
            path.write_bytes(self._graphs.get(winner) or path.read_bytes())
        return winner

    def _find_winner(self, simple: str, *others: str) -> str:
        everything, few = self._calibration, _take_evenly(self._calibration)
        self._baseline = answer((self._context.inputs["export"] / MODEL_NAME).read_bytes(), self.held_out)
        mark = self._compare(simple, everything)
        if mark is None:
            return simple  # what comes next tells what is wrong with the graph
        trials = {method: self._try(method, few) for method in others}
        ahead = {method: trial for method, trial in trials.items() if trial and beats(trial, mark)}
        if not ahead:
            return simple
        best = min(ahead, key=lambda method: ahead[method].rank)
        final = self._try(best, everything) if few is not everything else ahead[best]
        return best if final and beats(final, mark) else simple

    def _try(self, method: str, pictures: CalibrationSet) -> Trial | None:
        """Calibrate by the method and compare; None where that fails."""
        note = f"calibrating by {method} on {len(pictures.frames)} images, to compare"
        self._context.progress.advance(0, 1, note)
        try:
            self._quantize(method, pictures)
        except GateError as error:
            self._fail(method, pictures, error)
            return None
        return self._compare(method, pictures)

    def _compare(self, method: str, pictures: CalibrationSet) -> Trial | None:
        """What the stage's graph answers; it was made by this method of these pictures."""
        from edgekiln.export.precision.simulation import simulate

        graph = self._graphs[method] = (self._context.folder / MODEL_NAME).read_bytes()
        try:
            logits = simulate(graph, self.held_out, self._open)
        except (GateError, EngineError, BuildError) as error:
            self._fail(method, pictures, error)
            return None
        trial = compare(self._baseline, logits)
        differing, divergence = trial.rank
        self.figures[method] = {
            "calibrated_on": len(pictures.frames),
            "differing": differing,
            "divergence": divergence,
        }
        return trial

    def _fail(self, method: str, pictures: CalibrationSet, error: Exception) -> None:
        self.figures[method] = {"calibrated_on": len(pictures.frames), "failure": str(error)}


def compare(baseline: Logits, logits: Logits) -> Trial:
    """Answers float32 (N, C) next to those of the FP32 graph, float32 (N, C)."""
    from edgekiln.export.precision.sensitivity import measure_divergence

    differs = baseline.argmax(axis=1) != logits.argmax(axis=1)
    return Trial(differs, measure_divergence(baseline, logits))


def _take_evenly(calibration: CalibrationSet) -> CalibrationSet:
    """Some of the pictures, evenly spread; the set itself where it has no more."""
    count = len(calibration.frames)
    if count <= _FIRST_IMAGES:
        return calibration
    chosen = np.linspace(0, count - 1, _FIRST_IMAGES).astype(np.int64)
    frames = calibration.frames[chosen]
    return replace(
        calibration,
        frames=frames,
        indices=calibration.indices[chosen],
        digest=hashlib.sha256(frames.tobytes()).hexdigest(),
    )


def _tell(kept: str, simple: str, reason: str | None, race: _Race) -> str:
    """The choice in a sentence, for the report."""
    if reason is not None:
        return f"{kept}; {reason}"
    figures = "; ".join(_tell_figures(method, found) for method, found in race.figures.items())
    why = "it agrees best with FP32" if kept != simple else "no other is clearly better"
    return (
        f"{kept}, since {why} on {len(race.held_out)} training pictures that do not calibrate. Other answers than "
        f"FP32, and mean divergence in nats: {figures}"
    )


def _tell_figures(method: str, found: Mapping[str, Any]) -> str:
    if "failure" in found:
        return f"{method} failed ({found['failure']})"
    return f"{method} {found['differing']}, {found['divergence']:.3g}"
