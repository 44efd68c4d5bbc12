"""Did I really get INT8 or FP16? Judges an engine by what its layers compute with, weighted by MACs.

For TensorRT there are three kinds of evidence: its engine inspector (``parse_inspector``), the graph text inside a
TensorRT-RTX plan (``parse_rtx_plan``), and the types that a parsed network declares (``audit_declared``), which
can refuse an engine but never confirm one. ``audit_openvino`` brings layers of its own. What it does not know: the
inside of an opaque foreign node, which counts as unknown and so never as achieved, and the type in which a kernel
accumulates.

Needs the standard library and edgekiln.runtime only, so that it runs where an engine is built on its target.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgekiln.runtime.errors import EngineError, PrecisionError
from edgekiln.runtime.spec import Precision

__all__ = [
    "EngineAudit",
    "EngineLayer",
    "RtxEvidence",
    "audit_declared",
    "audit_engine",
    "audit_rtx_plan",
    "normalize_datatype",
    "parse_inspector",
    "parse_rtx_plan",
]

Evidence = Literal["inspector", "rtx-plan", "openvino", "declared", "none"]

# Most specific first: "uint8" holds "int8", "bfloat16" holds "float". "float8..." and "fp8" are 8 bit wide.
_DATATYPES = (
    ("uint8", r"\buint8|\bui8\b"),
    ("int8", r"\bint8|\bi8\b"),
    ("fp8", r"\bfp8|float8|\be4m3|\be5m2"),
    ("bf16", r"bfloat16|\bbfloat\b|\bbf16"),
    ("fp16", r"\bfp16|\bfloat16|\bhalf\b|\bf16\b"),
    ("fp32", r"\bfp32|\bfloat(32)?\b|\bf32\b"),
    ("int64", r"\bint64"),
    ("int32", r"\bint32"),
    ("bool", r"\bbool"),
)
_DATATYPE_PATTERNS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _DATATYPES)

# How kernel names spell their operands; NVIDIA documents none of it. ``..._i8f32_i8i32_f32_...`` is an INT8 kernel
# that gives FP32. FP16 stands before FP32, for ``f16f32`` and ``s16816gemm_fp16`` name the accumulator in front.
_TACTICS = (
    ("int8", r"(?<![a-z])u?i8(i8|i32|f)|int8|imma|i8816|i16832"),
    ("fp8", r"e4m3|e5m2"),
    ("bf16", r"bf16"),
    ("fp16", r"(?<!b)f16f(16|32)|fp16|h884|h1688|h16816|hmma|hcudnn|hgemm"),
    ("fp32", r"f32f32|s1688|scudnn|sgemm|ffma"),
)
_TACTIC_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _TACTICS)

_WIDTHS = {"int8": 8, "fp8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
_WANTED_WIDTH = {Precision.INT8: 8, Precision.FP16: 16, Precision.FP32: 32}

_CONVOLUTION = re.compile(r"^cask.*conv|convolution$", re.IGNORECASE)
_PRODUCT = re.compile(
    r"conv(?!er)|gemm|mat_?mul|matrix_?multiply|fully_?connected|correlation|corrltn|runtime_fusion|einsum|attention",
    re.IGNORECASE,
)
_FUSED = re.compile(r"fusion|kgen|^function", re.IGNORECASE)
_MOVES = re.compile(r"reformat|shuffle|slice|constant|noop|signal|wait|copy|padding", re.IGNORECASE)
_OPAQUE = re.compile(r"^\{ForeignNode\[|^Myelin$")
# Myelin names a generated kernel after its operations, four letters each: __myl_FcAddCast, __myl_MulSum.
_MOVED = re.compile(r"^__myl_(?:Tran|Conc|Resh|Repl|Move|Slic|Cast)+(?:_|$)")
_FUSED_PRODUCT = re.compile(r"gemm|mha|conv|^__myl_\w*?(Fc|Corr|Dot|Mul\w*Sum)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """One layer or kernel of an engine.

    Attributes:
        name: as the engine calls it.
        kind: LayerType, else ParameterType, as reported; the kernel's keyword in a TensorRT-RTX plan.
        origins: ONNX node names that it was made from.
        inputs: datatypes, activations first; ``unknown`` where the inspector does not say.
        outputs: datatypes.
        tactic: the kernel's name, or ``None``.
        weights: datatype of a convolution's weights where it is reported.
    """

    name: str
    kind: str
    origins: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str | None
    weights: str = "unknown"


@dataclass(frozen=True, slots=True)
class RtxEvidence:
    """What the graph text in a TensorRT-RTX plan says.

    Attributes:
        kernels: every kernel of every graph in the plan; a plan has several where shapes are dynamic.
        tf32: whether FP32 products may run in TF32.
    """

    kernels: tuple[EngineLayer, ...]
    tf32: bool


@dataclass(frozen=True, slots=True)
class EngineAudit:
    """What an engine computes its products with.

    Attributes:
        precision: what was wanted: fp32, fp16 or int8.
        share: MACs in the wanted width or narrower over all MACs, 0 to 1; ``None`` where nothing can confirm it.
        macs: MACs of one image by precision; ``unknown`` where no layer says.
        reformats: layers that only convert a tensor's type or layout.
        islands: layers that compute products in a wider type than wanted.
        unattributed: products (ONNX names) found in no layer, and layers of products that name no ONNX node.
        evidence: where all this was read.
        notes: what a reader should know.
    """

    precision: str
    share: float | None
    macs: dict[str, int]
    reformats: int
    islands: tuple[str, ...]
    unattributed: tuple[str, ...]
    evidence: Evidence
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("islands", "unattributed", "notes")}
        return {**asdict(self), **lists}


def normalize_datatype(text: object) -> str:
    """A datatype as TensorRT, its inspector or a plan spells it, in one spelling.

    Takes ``Half``, ``DataType.HALF``, ``Channel major FP16 format where channel % 8 == 0``, ``float8_e4m3``.

    Returns:
        fp32, fp16, bf16, int8, fp8, int32, uint8, bool, int64, or ``unknown``
        (``N/A due to dynamic shapes`` is what the inspector reports where shapes are dynamic).
    """
    plain = str(text)
    return next((name for name, pattern in _DATATYPE_PATTERNS if pattern.search(plain)), "unknown")


# TensorRT's engine inspector


def parse_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Read ``EngineInspector.get_engine_information(LayerInformationFormat.JSON)``.

    Source of the format: NVIDIA's trt-engine-explorer (8.x, 10.x) and its page "Migrating IEngineInspector
    Usage from TensorRT 10.x to 11.x". Each key is looked for; no version is asked.

    Args:
        text: the JSON of a whole engine. Layers that are plain names (an engine built without
            ``ProfilingVerbosity.DETAILED``) become layers of unknown type.

    Raises:
        EngineError: the text is not the inspector's JSON.
    """
    try:
        report = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise _refuse(f"not JSON ({type(problem).__name__})") from problem
    layers = report.get("Layers") if isinstance(report, dict) else None
    if not isinstance(layers, list):
        raise _refuse('an object without the list "Layers"')
    return tuple(_inspected_layer(layer) for layer in layers)


def _refuse(got: str) -> EngineError:
    return EngineError(
        f"Got {got}, wanted the engine inspector's JSON.",
        hint="Ask it for LayerInformationFormat.JSON, and build with ProfilingVerbosity.DETAILED.",
    )


def _inspected_layer(layer: object) -> EngineLayer:
    """One entry of ``Layers``: an object, or a name alone."""
    if isinstance(layer, str):
        return EngineLayer(layer, "unknown", _origins_of_name(layer), (), (), None)
    if not isinstance(layer, dict):
        raise _refuse(f"a layer that is {type(layer).__name__}")
    name = str(layer.get("Name", ""))
    kind = str(layer.get("LayerType") or layer.get("ParameterType") or "unknown")
    origins = _origins_of_metadata(str(layer.get("Metadata") or ""))
    if not origins and not _MOVES.search(kind):
        origins = _origins_of_name(name)
    tactic = layer.get("TacticName")
    weights = layer.get("Weights")
    return EngineLayer(
        name,
        kind,
        origins,
        _tensor_types(layer.get("Inputs")),
        _tensor_types(layer.get("Outputs")),
        str(tactic) if tactic else None,
        normalize_datatype(weights.get("Type")) if isinstance(weights, dict) else "unknown",
    )


def _tensor_types(tensors: object) -> tuple[str, ...]:
    """Datatypes of ``Inputs`` or ``Outputs``."""
    if not isinstance(tensors, list):
        return ()
    return tuple(_tensor_type(tensor) for tensor in tensors if isinstance(tensor, dict))


def _tensor_type(tensor: Mapping[str, object]) -> str:
    # 11.x split "Format/Datatype". Its pages write both "Datatype" and "DataType"; "Format" may name a type too.
    keys = ("Datatype", "DataType", "Format/Datatype", "Format")
    types = (normalize_datatype(tensor[key]) for key in keys if key in tensor)
    return next((name for name in types if name != "unknown"), "unknown")


def _origins_of_metadata(metadata: str) -> tuple[str, ...]:
    """ONNX names out of ``[ONNX Layer: a]`` entries; 8.x and 10.x part them by \\x1e, newer ones by \\x1f.

    An entry may carry a suffix that tells of a rewrite: ``[ONNX Layer: a]__gemm_from_conv1x1``.
    """
    entries = re.split(r"[\x1e\x1f]|(?=\[ONNX Layer: )", metadata)
    matches = (re.fullmatch(r"\[ONNX Layer: (.*)\]\w*", entry.strip()) for entry in entries)
    return tuple(dict.fromkeys(match[1] for match in matches if match))


def _origins_of_name(name: str) -> tuple[str, ...]:
    """ONNX names out of a fused layer's name: ``a + b``, ``a || b``, ``{ForeignNode[a...b]}``."""
    if name.startswith("Reformatting CopyNode"):
        return ()
    foreign = re.fullmatch(r"\{ForeignNode\[(.*)\.\.\.(.*)\]\}", name)
    parts = foreign.groups() if foreign else re.split(r" \+ | \|\| ", name)
    cleaned = (re.sub(r"_myl\d+_\d+$", "", part.strip()) for part in parts)
    return tuple(dict.fromkeys(part for part in cleaned if part))


# The graph text in a TensorRT-RTX plan

_TEXT_START = b"header {\n"
_TEXT_LIMIT = 1 << 26  # bytes of one graph's text; real ones are some 100 bytes per kernel and tensor
_KERNEL_LINE = re.compile(r"^\s*(\w+)=\{ name=(\"[^\"]*\"|\S+)")
_QUOTED = re.compile(r'"([^"]*)"')


def parse_rtx_plan(plan: bytes) -> RtxEvidence | None:
    """Read the readable graph text of a TensorRT-RTX plan: what each kernel takes and gives.

    The format was read from plans that TensorRT-RTX 1.7.1 built; NVIDIA documents none of it. A plan holds one
    or more texts ``header {...} descriptors {...} main {...}``. A line ``tensor={... name="x" ... type=half }``
    gives a tensor its type; a line ``corrltn={ name="a" output={"y"} input={"x" "w"} layers="[ONNX Layer: a]" }``
    is a kernel. Of these corrltn (convolution), deconvolution, fully_connected and runtime_fusion compute
    products; function is a generated kernel. The first two inputs of the first three are the operands.

    Args:
        plan: any bytes; read once, never executed, never deserialized.

    Returns:
        ``None`` where the bytes hold no such text with a kernel in it.
    """
    kernels: list[EngineLayer] = []
    tf32 = False
    for text in _graph_texts(plan):
        lines = text.split("\n")
        tf32 = tf32 or any(line.strip() == "tf32=1" for line in lines)
        types = dict(
            _rtx_tensor(line) for line in lines if line.lstrip().startswith(("tensor={", "sub_tensor={"))
        )
        kernels.extend(kernel for kernel in (_rtx_kernel(line, types) for line in lines) if kernel)
    return RtxEvidence(tuple(kernels), tf32) if kernels else None


def _graph_texts(plan: bytes) -> Iterator[str]:
    """Each graph text. It ends where its bytes stop being text; no byte is looked at twice."""
    position = plan.find(_TEXT_START)
    while position >= 0:
        end = plan.find(b"\0", position, position + _TEXT_LIMIT)
        end = min(len(plan), position + _TEXT_LIMIT) if end < 0 else end
        yield plan[position:end].decode("utf-8", "replace")
        position = plan.find(_TEXT_START, end)


def _rtx_tensor(line: str) -> tuple[str, str]:
    """A tensor's name and datatype."""
    return _between(line, ' name="', '"'), normalize_datatype(_between(line, " type=", " "))


def _rtx_kernel(line: str, types: Mapping[str, str]) -> EngineLayer | None:
    """A kernel's line, or ``None`` for any other."""
    match = _KERNEL_LINE.match(line)
    if not match or match[1] in {"tensor", "sub_tensor", "region"}:
        return None
    inputs, outputs = (
        _rtx_operands(line, keys) for keys in (("input", "input_args"), ("output", "output_args"))
    )
    return EngineLayer(
        match[2].strip('"'),
        match[1],
        _origins_of_metadata(_between(line, ' layers="', '"')),
        tuple(types.get(name, "unknown") for name in inputs),
        tuple(types.get(name, "unknown") for name in outputs),
        None,
    )


def _rtx_operands(line: str, keys: Iterable[str]) -> list[str]:
    return [name for key in keys for name in _QUOTED.findall(_between(line, f" {key}={{", "}"))]


def _between(line: str, start: str, end: str) -> str:
    """What stands between two marks; empty where either is absent."""
    _, found, rest = line.partition(start)
    inside, closed, _ = rest.partition(end)
    return inside if found and closed else ""


# Judging


def audit_engine(
    layers: Sequence[EngineLayer],
    products: Mapping[str, int],
    precision: Precision,
    minimum_share: float,
    *,
    evidence: Evidence = "inspector",
) -> EngineAudit:
    """Judge an engine by the layers that its library tells of.

    A layer's precision is that of its activation inputs, not of its output: an INT8 convolution may give FP16.
    Only where they are unknown (dynamic shapes) do the kernel's name, and then the weights' type, stand in; a note
    says so.

    Args:
        layers: from ``parse_inspector``, or those of another library in the same form.
        products: ONNX name of each Conv, Gemm and MatMul to its MACs for one image.
        precision: what was wanted. FP16 counts all of 16 bits and less; FP32 is met by everything.
        minimum_share: of the MACs, 0 to 1.
        evidence: where the layers come from.

    Raises:
        PrecisionError: less than ``minimum_share`` runs in the wanted precision; the layers are named.
    """
    return _require(_judge(layers, products, precision, evidence), minimum_share)


def audit_rtx_plan(
    plan: bytes, products: Mapping[str, int], precision: Precision, minimum_share: float
) -> EngineAudit:
    """Judge a TensorRT-RTX plan by the graph text in it, without a GPU.

    Args:
        plan: the serialized engine.
        products: as for ``audit_engine``.
        precision: what was wanted.
        minimum_share: of the MACs, 0 to 1.

    Returns:
        Evidence ``none`` and share ``None`` where the plan holds no graph text: nothing is then proved either way.

    Raises:
        PrecisionError: as for ``audit_engine``.
    """
    found = parse_rtx_plan(plan)
    if found is None:
        note = "The plan holds no readable graph: its precision could not be read."
        return EngineAudit(
            precision.value,
            None,
            {"unknown": sum(products.values())},
            0,
            (),
            tuple(products),
            "none",
            (note,),
        )
    notes = [*_float_outputs(found.kernels, precision)]
    if found.tf32 and precision is Precision.FP32:
        notes.append("TF32 is on: FP32 products may round their operands to 10 bits of mantissa.")
    return _require(_judge(found.kernels, products, precision, "rtx-plan", notes), minimum_share)


def _float_outputs(kernels: Iterable[EngineLayer], precision: Precision) -> Iterator[str]:
    """A warning where INT8 products give FP32, which other kernels must scale and quantize again."""
    convolutions = [
        kernel for kernel in kernels if kernel.kind == "corrltn" and kernel.inputs[:1] == ("int8",)
    ]
    unfused = sum(kernel.outputs[:1] == ("fp32",) for kernel in convolutions)
    if precision is Precision.INT8 and unfused:
        yield (
            f"Warning: {unfused} of {len(convolutions)} INT8 convolutions emit float32, with bias, activation and "
            "quantization in kernels of their own. Expect no speed-up over FP16; measure."
        )


def audit_declared(
    declared: Mapping[str, str], products: Mapping[str, int], precision: Precision, minimum_share: float
) -> EngineAudit:
    """Judge what a parsed network declares. It can refuse an engine; only what was achieved confirms one.

    Args:
        declared: ONNX node name to the datatype of its activation input. Behind a DequantizeLinear give the type
            that this one reads: the network itself declares the product's input as floating point.
        products: as for ``audit_engine``.
        precision: what was wanted.
        minimum_share: of the MACs, 0 to 1.

    Returns:
        Share ``None``; ``macs`` has what was declared.

    Raises:
        PrecisionError: less than ``minimum_share`` is declared in the wanted precision.
    """
    layers = [
        EngineLayer(name, "Convolution", (name,), (normalize_datatype(datatype),), (), None)
        for name, datatype in declared.items()
        if name in products
    ]
    audit = _require(_judge(layers, products, precision, "declared"), minimum_share)
    note = "Declared by the network, not read from the engine: this can refuse a precision, not confirm it."
    return EngineAudit(
        audit.precision,
        None,
        audit.macs,
        0,
        audit.islands,
        audit.unattributed,
        "declared",
        (note, *audit.notes),
    )


def _judge(
    layers: Sequence[EngineLayer],
    products: Mapping[str, int],
    precision: Precision,
    evidence: Evidence,
    notes: Iterable[str] = (),
) -> EngineAudit:
    """Count MACs by what each product is computed with."""
    makers = _layers_by_origin(layers, products)
    found = {name: _widest(_compute_type(layer) for layer in makers.get(name, ())) for name in products}
    macs: dict[str, int] = {}
    for name, datatype in found.items():
        macs[datatype] = macs.get(datatype, 0) + products[name]
    chosen = {id(layer): layer for group in makers.values() for layer in group}
    nameless = [layer for layer in layers if _is_nameless_product(layer, products)]
    limit = _WANTED_WIDTH[precision]
    islands = [layer.name for layer in (*chosen.values(), *nameless) if _width(_compute_type(layer)) > limit]
    missing = [name for name in products if name not in makers]
    return EngineAudit(
        precision.value,
        _share(macs, precision),
        macs,
        sum(_is_reformat(layer) for layer in layers),
        tuple(dict.fromkeys(islands)),
        (*missing, *(layer.name for layer in nameless)),
        evidence,
        (*notes, *_notes(list(chosen.values()))),
    )


def _layers_by_origin(
    layers: Iterable[EngineLayer], products: Mapping[str, int]
) -> dict[str, list[EngineLayer]]:
    """For each product the layers that compute it: those that are products by kind, else the next best.

    A node's name also stands on the layers that move its input or scale its output; they prove nothing.
    """
    ranked: dict[str, list[tuple[int, EngineLayer]]] = {}
    for layer in layers:
        rank = _rank(layer)
        for name in layer.origins:
            if name in products and rank < 3:
                ranked.setdefault(name, []).append((rank, layer))
    return {
        name: [layer for rank, layer in group if rank == min(rank for rank, _ in group)]
        for name, group in ranked.items()
    }


def _rank(layer: EngineLayer) -> int:
    """0: computes products by its kind; 1: a generated kernel whose name says so; 2: not told; 3: does not."""
    if _is_reformat(layer):
        return 3
    if _is_opaque(layer) or layer.kind == "unknown":
        return 2
    if _PRODUCT.search(layer.kind):
        return 0
    if not _FUSED.search(layer.kind):
        return 3
    # Any other name may hold an ONNX name such as "/conv1/Conv" and say nothing of the kernel.
    generated = layer.name if layer.name.startswith(("__myl_", "_gemm_")) else ""
    return 1 if any(_FUSED_PRODUCT.search(name) for name in (generated, layer.tactic or "")) else 3


def _is_opaque(layer: EngineLayer) -> bool:
    return bool(_OPAQUE.match(layer.name) or _OPAQUE.match(layer.kind))


def _is_reformat(layer: EngineLayer) -> bool:
    return (
        layer.kind == "Reformat"
        or layer.name.startswith("Reformatting CopyNode")
        or bool(_MOVED.match(layer.name))
    )


def _is_nameless_product(layer: EngineLayer, products: Mapping[str, int]) -> bool:
    """A product that no ONNX product leads to: it is computed, and nobody knows for which node."""
    return _rank(layer) == 0 and not any(name in products for name in layer.origins)


def _compute_type(layer: EngineLayer) -> str:
    """The precision a product is computed in: by its operands, else its kernel's name, else its weights.

    Where the operands differ, one may be a scale or a bias: the kernel's name decides, if it names one of them.
    """
    if _is_opaque(layer):
        return "unknown"  # its boundary says nothing of what is computed inside
    operands, tactic = _operand_types(layer), _tactic_type(layer)
    if tactic and (not operands or (tactic in operands and len(operands) > 1)):
        return tactic
    if operands:
        return _widest(operands)
    return layer.weights if layer.weights in _WIDTHS else "unknown"


def _operand_types(layer: EngineLayer) -> set[str]:
    """The types among which the operands' is; empty where they are not reported.

    A TensorRT convolution's inputs are the activation and then a fused residual. Other products list both operands
    first. A generated kernel sorts its inputs freely: any of them may be an operand.
    """
    inputs = layer.inputs
    if _CONVOLUTION.search(layer.kind):
        inputs = inputs[:1]
    elif not _FUSED.search(layer.kind):
        inputs = inputs[:2]
    return set() if "unknown" in inputs else {name for name in inputs if name in _WIDTHS}


def _tactic_type(layer: EngineLayer) -> str | None:
    tactic = (layer.tactic or "").lower()
    return next((name for name, pattern in _TACTIC_PATTERNS if pattern.search(tactic)), None)


def _width(datatype: str) -> int:
    """Bits; 0 for a type that is unknown, which is no island."""
    return _WIDTHS.get(datatype, 0)


def _widest(datatypes: Iterable[str]) -> str:
    """The widest; ``unknown`` where any is, or where there is none."""
    found = list(datatypes)
    if not found or any(name not in _WIDTHS for name in found):
        return "unknown"
    return max(found, key=_width)


def _share(macs: Mapping[str, int], precision: Precision) -> float | None:
    total = sum(macs.values())
    if not total:
        return None
    if precision is Precision.FP32:
        return 1.0  # nothing is wider, so even what is unknown keeps the promise
    limit = _WANTED_WIDTH[precision]
    return sum(count for name, count in macs.items() if 0 < _width(name) <= limit) / total


def _notes(products: Sequence[EngineLayer]) -> Iterator[str]:
    """What the judging had to lean on, and where a kernel's name contradicts its inputs."""
    visible = [layer for layer in products if not _is_opaque(layer)]
    silent = [layer for layer in visible if not _operand_types(layer)]
    named = sum(_tactic_type(layer) is not None for layer in silent)
    weighed = sum(_tactic_type(layer) is None and layer.weights in _WIDTHS for layer in silent)
    if opaque := len(products) - len(visible):
        yield f"{opaque} foreign nodes hide what they compute with; their products count as unknown."
    if named:
        yield f"{named} layers report no input type and were judged by their kernel's name."
    if weighed:
        yield f"{weighed} layers report no input type or kernel and were judged by their weights."
    if any(layer.kind == "unknown" for layer in silent):
        yield "The engine was not built with ProfilingVerbosity.DETAILED: it lists names alone."
    odd = [layer.name for layer in visible if _contradicts(layer)]
    if odd:
        yield f"The kernel's name contradicts the input type in {_listed(odd)}."
    tf32 = sum("tf32" in (layer.tactic or "") or "s1688gemm_" in (layer.tactic or "") for layer in visible)
    if tf32:
        yield f"{tf32} layers use TF32 kernels."


def _contradicts(layer: EngineLayer) -> bool:
    operands, tactic = _operand_types(layer), _tactic_type(layer)
    return bool(operands) and tactic is not None and _width(tactic) not in {_width(name) for name in operands}


def _require(audit: EngineAudit, minimum_share: float) -> EngineAudit:
    """Refuse an audit that stays below what was asked."""
    if audit.precision == Precision.FP32.value or (audit.share is not None and audit.share >= minimum_share):
        return audit
    if audit.share is None:
        raise PrecisionError("Got no product with a known count of MACs, wanted some to audit.")
    total = sum(audit.macs.values())
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in sorted(audit.macs.items()))
    missing = f" Attributed to no layer: {_listed(audit.unattributed)}." if audit.unattributed else ""
    notes = " ".join(("", *audit.notes))
    raise PrecisionError(
        f"Only {audit.share:.1%} of the MACs run in {audit.precision} ({shares}; {audit.evidence}), wanted "
        f"{minimum_share:.1%}. Computing wider: {_listed(audit.islands) or 'none known'}.{missing}{notes}",
        hint="Lower min_precision_share only where that is acceptable: the engine would be so in name only.",
    )


def _listed(names: Sequence[str]) -> str:
    """The first eight, and how many more."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
