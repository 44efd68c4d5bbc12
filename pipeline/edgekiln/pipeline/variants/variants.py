"""Makes the graph of each variant: the exported file itself, or a conversion of it, with what was found about it.

What is made is run for the first time in a child process, one for the whole stage: a library that crashes on it fails
this variant, not the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.export.child import Child
from edgekiln.pipeline.recipe import VariantSettings
from edgekiln.pipeline.variants.calibrating import examine_calibration_set
from edgekiln.pipeline.variants.choosing import choose_method
from edgekiln.pipeline.variants.isolated import IsolatedSession
from edgekiln.pipeline.variants.searching import Loop, answer, hold_budget
from edgekiln.pipeline.workspace.stage_files import (
    ABOUT_NAME,
    FALLBACK_NAME,
    MODEL_NAME,
    RETRY_NAME,
    StageContext,
    write_json,
)
from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import (
    BuildError,
    DataError,
    DeviceError,
    EngineError,
    GateError,
    MissingExtraError,
    ResourceError,
)
from edgekiln.runtime.spec import Frames, Logits, Precision

if TYPE_CHECKING:
    from edgekiln.export.calibration import CalibrationSet
    from edgekiln.export.parity import Parity
    from edgekiln.export.precision.int8_tensorrt import Int8Report
    from edgekiln.export.precision.onnxruntime_quantizer import ActivationRanges
    from edgekiln.export.precision.outliers import FloatPlan

__all__ = ["make_variant"]

_PARITY_IMAGES = 64
_BF16_LOOSER = 8.0  # BF16 has three bits of mantissa less than FP16
_CANDIDATE_NAME = "candidate.part"  # the store takes such files away


def make_variant(context: StageContext, variant: VariantSettings) -> None:
    """Write ``model.onnx`` and ``about.json``. A failure is this variant's, not the run's."""
    source, target = context.inputs["export"] / MODEL_NAME, context.folder / MODEL_NAME
    about: dict[str, Any] = {"failure": None, "unavailable": None, "not_built": None}
    try:
        with Child(_judge_name(variant)) as child:
            _make_graph(context, variant, (source, target), about, child)
    except (GateError, DataError, EngineError) as error:
        about["failure"] = str(error)
        context.progress.message(f"  {variant.name}: {error}")
    except (MissingExtraError, DeviceError) as error:
        about["unavailable"] = str(error)
        context.progress.message(f"  {variant.name} is not tried here: {error}")
    except (BuildError, ResourceError) as error:
        _tell_not_built(context, variant, error, about)
    if target.exists():  # also of a graph that failed: its engine is evidence
        if variant.builds_engine:
            about["products"] = _count_macs(target)
        about["costs"] = _count_costs(target)
    write_json(context.folder / ABOUT_NAME, about)


def _tell_not_built(
    context: StageContext, variant: VariantSettings, error: BuildError | ResourceError, about: dict[str, Any]
) -> None:
    """A crash of the library that would run the graph, or of the one that simulates it; and what may pass."""
    if variant.builds_engine and isinstance(error, BuildError):
        about["failure"] = f"The graph could not be simulated on the CPU: {error}"
    else:
        about["not_built"] = f"could not be built here: {error}"
    if isinstance(error, ResourceError):  # memory and hanging are nothing that the stage's key knows of
        (context.folder / RETRY_NAME).write_text(str(error), "utf-8")
    context.progress.message(f"  {variant.name}: {about['failure'] or about['not_built']}")


def _make_graph(
    context: StageContext,
    variant: VariantSettings,
    paths: tuple[Path, Path],
    about: dict[str, Any],
    child: Child,
) -> None:
    source, target = paths
    match variant.precision, variant.backend:
        case Precision.FP32, _:
            shutil.copyfile(source, target)
            _ask_for_static_batches(variant, target)
        case Precision.FP16, _:
            _convert_to_fp16(context, variant, source, target, about, child)
        case Precision.BF16, "openvino":
            _ask_for_bf16(context, variant, source, target, about, child)
        case Precision.BF16, _:
            _convert_to_bf16(context, variant, source, target, about, child)
        case Precision.INT8, "onnxruntime-cpu" | "openvino":
            _quantize_for_cpu(context, variant, source, target, about, child)
        case _:
            make = _quantize_for_tensorrt if variant.qat is None else _export_trained
            make(context, variant, source, target, about, child)
            if variant.fallback == "fp16":
                _convert_to_fp16(context, variant, source, context.folder / FALLBACK_NAME, about, child)


def _convert_to_fp16(
    context: StageContext,
    variant: VariantSettings,
    source: Path,
    target: Path,
    about: dict[str, Any],
    child: Child,
) -> None:
    from edgekiln.export.precision.fp16 import convert_to_fp16

    calibration = examine_calibration_set(context, variant, about)
    context.progress.advance(0, 2, "AutoCast to FP16")
    report = convert_to_fp16(source, target, calibration)
    about["fp16"] = report.to_dict()
    for name in report.kept_fp32[:5]:
        context.progress.message(f"  {variant.name}: {name} stays in FP32: values there exceed 512")
    _check_converted(context, (source, target), calibration, about, child, 1.0)


def _check_converted(
    context: StageContext,
    paths: tuple[Path, Path],
    calibration: CalibrationSet,
    about: dict[str, Any],
    child: Child,
    looser: float,
) -> None:
    """Parity of a graph for GPUs with its source, both on the CPU, by ``looser`` times what FP16 is allowed."""
    from edgekiln.export.precision.simulation import Simulation, check_simulated_parity

    source, target = paths
    context.progress.advance(1, 2, "parity on real images")
    parity = check_simulated_parity(
        source.read_bytes(),
        target.read_bytes(),
        calibration.frames[:_PARITY_IMAGES],
        looser * context.recipe.export.fp16_tolerance,
        partial(IsolatedSession, child, Simulation),
    )
    about["parity"] = _tell_parity(parity)


def _tell_parity(parity: Parity) -> dict[str, Any]:
    return {
        "images": parity.images,
        "max_difference": parity.max_difference,
        "relative": parity.relative,
    }


def _convert_to_bf16(
    context: StageContext,
    variant: VariantSettings,
    source: Path,
    target: Path,
    about: dict[str, Any],
    child: Child,
) -> None:
    from edgekiln.export.precision.fp16 import convert_to_bf16

    calibration = examine_calibration_set(context, variant, about)
    context.progress.advance(0, 2, "AutoCast to BF16")
    kept = convert_to_bf16(source, target, calibration)
    about["bf16"] = {"kept_fp32": list(kept[:20]), "kept_fp32_count": len(kept)}
    _check_converted(context, (source, target), calibration, about, child, _BF16_LOOSER)


def _ask_for_bf16(
    context: StageContext,
    variant: VariantSettings,
    source: Path,
    target: Path,
    about: dict[str, Any],
    child: Child,
) -> None:
    """OpenVINO computes the FP32 graph in BF16 itself: the file asks for it, and is run and audited here."""
    from edgekiln.export.audits.openvino import audit_openvino_bf16
    from edgekiln.export.parity import Compared, check_parity
    from edgekiln.export.to_onnx import ask_for_precision
    from edgekiln.runtime.backends.openvino import import_openvino

    import_openvino()
    target.write_bytes(ask_for_precision(source.read_bytes(), Precision.BF16))
    _ask_for_static_batches(variant, target)
    frames = examine_calibration_set(context, variant, about).frames[:_PARITY_IMAGES]
    context.progress.advance(0, 2, "parity on real images")
    open_graph = partial(IsolatedSession, child, open_session, variant.backend)
    logits, reference = (answer(path.read_bytes(), frames, open_graph) for path in (target, source))
    keys = [f"calibration image {i}" for i in range(len(frames))]
    told = Compared(
        "The graph in BF16", "the graph in FP32", "Take FP32 or INT8, or raise export.fp16_tolerance."
    )
    tolerance = _BF16_LOOSER * context.recipe.export.fp16_tolerance
    about["parity"] = _tell_parity(check_parity(reference, logits, keys, tolerance, told))
    audit = child.call(audit_openvino_bf16, target.read_bytes(), variant.precision_share)
    about["audit"] = audit.to_dict()


def _ask_for_static_batches(variant: VariantSettings, target: Path) -> None:
    """The file itself says for which batch sizes OpenVINO is to have a model, so that whoever opens it gets them."""
    if variant.static_models:
        from edgekiln.export.to_onnx import ask_for_static_batches

        target.write_bytes(ask_for_static_batches(target.read_bytes(), variant.static_models))


def _quantize_for_tensorrt(
    context: StageContext,
    variant: VariantSettings,
    source: Path,
    target: Path,
    about: dict[str, Any],
    child: Child,
) -> None:
    from edgekiln.export.precision.int8_tensorrt import quantize_for_tensorrt
    from edgekiln.export.precision.simulation import Simulation, simulate

    calibration = examine_calibration_set(context, variant, about)
    plan = _plan_float(context, variant, source, calibration, about)
    reports: dict[str, Int8Report] = {}
    evaluate = partial(simulate, open_graph=partial(IsolatedSession, child, Simulation))

    def quantize(method: Any, pictures: CalibrationSet) -> None:
        rest = next((known.rest for known in reports.values()), None)
        reports[method] = quantize_for_tensorrt(source, target, pictures, method, rest=rest, plan=plan)

    method = choose_method(context, variant, calibration, (quantize, child), about)
    report = reports[method]
    if variant.searches:

        def make(keep_float: Collection[str]) -> bytes:
            part = context.folder / _CANDIDATE_NAME
            quantize_for_tensorrt(
                source, part, calibration, method, keep_float=keep_float, rest=report.rest, plan=plan
            )
            return part.read_bytes()

        judged_by = "a simulation of the graph on the CPU, not by an engine"
        loop = Loop(target.read_bytes(), make, evaluate, judged_by, report.rest.upper())
        kept = hold_budget(context, variant, loop, about)
        if kept:
            report = quantize_for_tensorrt(
                source, target, calibration, method, keep_float=kept, rest=report.rest, plan=plan
            )
    about["int8"] = report.to_dict()
    if plan.products:
        about["kept_share"] = _share_of(source, {*report.kept_float, *plan.products})
    context.progress.advance(1, 2, "NaN and infinity on real images")
    evaluate(target.read_bytes(), calibration.frames[:_PARITY_IMAGES])


def _export_trained(
    context: StageContext,
    variant: VariantSettings,
    source: Path,
    target: Path,
    about: dict[str, Any],
    child: Child,
) -> None:
    """The graph of what the stage ``qat.NAME`` trained, under the same lint as any other."""
    from edgekiln.export.precision.simulation import Simulation, simulate
    from edgekiln.export.qat.to_onnx import export_fake_quantized
    from edgekiln.pipeline.training.qat import TRAINED_NAME, load_trained
    from edgekiln.pipeline.variants.qat import read_training, tell_training

    stage = context.inputs[f"qat.{variant.name}"]
    about["qat"] = read_training(stage)
    calibration = examine_calibration_set(context, variant, about)
    about["calibration"]["method"] = variant.calibration
    context.progress.advance(0, 2, "exporting the trained Q/DQ network")
    export = context.recipe.export
    report = export_fake_quantized(
        load_trained(stage / TRAINED_NAME, context.recipe.backbone),
        source,
        target,
        calibration,
        opset=export.opset,
        tolerance=export.parity_tolerance,
    )
    about["int8"] = report.to_dict()
    about["notices"] = [tell_training(variant.name, about["qat"])]
    context.progress.message(f"  {about['notices'][0]}")
    context.progress.advance(1, 2, "NaN and infinity on real images")
    simulate(
        target.read_bytes(), calibration.frames[:_PARITY_IMAGES], partial(IsolatedSession, child, Simulation)
    )


def _quantize_for_cpu(
    context: StageContext,
    variant: VariantSettings,
    source: Path,
    target: Path,
    about: dict[str, Any],
    child: Child,
) -> None:
    from edgekiln.export.precision import int8_cpu
    from edgekiln.export.precision.onnxruntime_quantizer import measure_ranges

    quantize_for_cpu = partial(int8_cpu.quantize_for_cpu, signed_pixels=variant.backend == "openvino")
    judge = _cpu_judge(variant, child)
    calibration = examine_calibration_set(context, variant, about)
    plan = _plan_float(context, variant, source, calibration, about)
    made: dict[str, tuple[ActivationRanges, bool]] = {}

    def quantize(method: Any, pictures: CalibrationSet) -> None:
        ranges = measure_ranges(source, pictures, method)
        made[method] = ranges, quantize_for_cpu(source, target, pictures, method, ranges=ranges, plan=plan)

    method = choose_method(context, variant, calibration, (quantize, child), about)
    ranges, pixels = made[method]
    kept: tuple[str, ...] = ()
    if variant.searches:

        def make(keep_float: Collection[str]) -> bytes:
            part = context.folder / _CANDIDATE_NAME
            quantize_for_cpu(
                source, part, calibration, method, keep_float=keep_float, ranges=ranges, plan=plan
            )
            return part.read_bytes()

        loop = Loop(target.read_bytes(), make, judge.evaluate, f"{judge.name} on this CPU", "FP32")
        kept = hold_budget(context, variant, loop, about)
        if kept:
            pixels = quantize_for_cpu(
                source, target, calibration, method, keep_float=kept, ranges=ranges, plan=plan
            )
    about["pixels_feed_directly"] = pixels
    _ask_for_static_batches(variant, target)
    audit = judge.audit(
        source.read_bytes(), target.read_bytes(), variant.precision_share, keep_float={*kept, *plan.reasons}
    )
    about["audit"] = audit.to_dict()


def _plan_float(
    context: StageContext,
    variant: VariantSettings,
    source: Path,
    calibration: CalibrationSet,
    about: dict[str, Any],
) -> FloatPlan:
    """What stays in float whatever the budget; written into ``about`` and told."""
    import onnx

    from edgekiln.export.precision.outliers import plan_float

    plan = plan_float(onnx.load(source), calibration)
    about["float_plan"] = plan.to_dict()
    if plan.reasons:
        sentence = f"{variant.name}: {plan.tell()}"
        about.setdefault("notices", []).append(sentence)
        context.progress.message(f"  {sentence}")
    return plan


def _share_of(source: Path, products: Collection[str]) -> float:
    """Share of the network's MACs."""
    macs = _count_macs(source)
    return sum(macs.get(name, 0) for name in products) / max(1, sum(macs.values()))


@dataclass(frozen=True, slots=True)
class _CpuJudge:
    """The library that runs an INT8 graph for CPUs, and so answers for it and tells what it computes with."""

    name: str
    evaluate: Callable[[bytes, Frames], Logits]
    audit: Callable[..., Any]


def _judge_name(variant: VariantSettings) -> str:
    """The library that runs the variant's graph at this stage."""
    return "OpenVINO" if variant.backend == "openvino" else "onnxruntime"


def _cpu_judge(variant: VariantSettings, child: Child) -> _CpuJudge:
    """Raises MissingExtraError where the variant's library is not here: nothing is calibrated in vain."""
    audit: Callable[..., Any]
    if variant.backend == "openvino":
        from edgekiln.export.audits.openvino import audit_openvino
        from edgekiln.runtime.backends.openvino import import_openvino

        import_openvino()
        audit = audit_openvino
    else:
        from edgekiln.export.audits.onnxruntime import audit_int8

        audit = audit_int8
    open_graph = partial(IsolatedSession, child, open_session, variant.backend)
    return _CpuJudge(
        _judge_name(variant),
        partial(answer, open_graph=open_graph),
        lambda *arguments, **options: child.call(audit, *arguments, **options),
    )


def _count_macs(model: Path) -> dict[str, int]:
    import onnx

    from edgekiln.export.audits.macs import count_macs

    return dict(count_macs(onnx.load(model, load_external_data=False)))


def _count_costs(model: Path) -> dict[str, Any]:
    from edgekiln.export.audits.costs import count_costs

    return count_costs(model.read_bytes()).to_dict()
