"""What both users of nvidia-modelopt need: the import, silence, and the model made ours again afterwards."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import onnx

from edgekiln.export.to_onnx import MAX_IR_VERSION
from edgekiln.runtime.errors import MissingExtraError, PrecisionError
from edgekiln.runtime.extras import import_extra

__all__ = ["BF16_OPSET", "finish_model", "import_modelopt", "quiet_modelopt", "restored_onnxruntime"]

MAX_OPSET = 20
"""The newest that TensorRT 10.3's parser documents (JetPack 6)."""
BF16_OPSET = 22
"""The first with BF16 in convolutions. TensorRT-RTX 1.7 reads it; whether TensorRT 10.3 does was not tried."""


def import_modelopt(module: str) -> ModuleType:
    """Import a part of nvidia-modelopt.

    Raises:
        MissingExtraError: it, or a package that this part imports, is absent; nvidia-modelopt requires few of them.
    """
    import_extra("modelopt", "modelopt")
    try:
        with quiet_modelopt():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"nvidia-modelopt is installed without the package {error.name!r}, which {module} needs.",
            hint="Run: pip install 'edgekiln[modelopt]'",
        ) from error


@contextlib.contextmanager
def quiet_modelopt() -> Iterator[None]:
    """The library logs to stdout, where edgekiln's result goes, and warns of GPUs that nobody asked for.

    With ``--debug`` (a root logger at DEBUG) its log goes to stderr as every other.
    """
    wanted = logging.getLogger().isEnabledFor(logging.DEBUG)
    logger = logging.getLogger("modelopt")
    propagates = logger.propagate
    logger.propagate = wanted
    stderr = contextlib.nullcontext() if wanted else contextlib.redirect_stderr(io.StringIO())
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), stderr:
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.propagate = propagates


@contextlib.contextmanager
def restored_onnxruntime() -> Iterator[None]:
    """ModelOpt replaces methods of onnxruntime's quantizer for the whole process; here they are put back.

    Otherwise the INT8 variant for CPUs, made after one for TensorRT, gets other ranges or none at all.
    """
    names = ("calibrate", "qdq_quantizer", "base_quantizer", "registry")
    modules = [import_extra(f"onnxruntime.quantization.{name}", "onnx") for name in names]
    classes = {v for module in modules for v in vars(module).values() if isinstance(v, type)
               and v.__module__.startswith("onnxruntime.quantization")}  # fmt: skip
    owners: list[Any] = [*modules, *sorted(classes, key=lambda c: (c.__module__, c.__qualname__))]
    before = [dict(vars(owner)) for owner in owners]
    registries = [v for name, v in vars(modules[-1]).items() if name.endswith("Registry")]
    entries = [dict(registry) for registry in registries]
    try:
        yield
    finally:
        for owner, known in zip(owners, before, strict=True):
            for name, value in dict(vars(owner)).items():
                if name not in known:
                    delattr(owner, name)
                elif value is not known[name]:
                    setattr(owner, name, known[name])
        for registry, known in zip(registries, entries, strict=True):
            registry.clear()
            registry.update(known)


def finish_model(converted: Any, original: Any, *, max_opset: int = MAX_OPSET) -> bytes:
    """A converted model as edgekiln keeps its files: the contract in it, the same interface, checked.

    Args:
        converted: ModelProto that modelopt gave.
        original: ModelProto that it was made from.
        max_opset: the newest that it may be of.

    Raises:
        PrecisionError: an input or output changed its name, type or shape, or the file is too new for TensorRT.
    """
    interface, converted_interface = (
        (*model.graph.input, *model.graph.output) for model in (original, converted)
    )
    if len(interface) != len(converted_interface):
        names = ", ".join(value.name for value in converted_interface)
        raise PrecisionError(f"The conversion changed the interface, which is now {names}.")
    for ours, theirs in zip(interface, converted_interface, strict=True):
        if ours.name != theirs.name or ours.type.tensor_type.elem_type != theirs.type.tensor_type.elem_type:
            raise PrecisionError(f"The conversion changed the interface: {ours.name} became {theirs.name}.")
        theirs.CopyFrom(ours)  # the batch stays dynamic, and keeps its name
    opsets = {entry.domain: entry.version for entry in converted.opset_import}
    if opsets.get("", 99) > max_opset or converted.ir_version > MAX_IR_VERSION:
        reader = "TensorRT 10.3" if max_opset == MAX_OPSET else "what runs it"
        raise PrecisionError(
            f"The conversion wrote opset {opsets} and IR {converted.ir_version}; {reader} reads opset "
            f"{max_opset} and IR {MAX_IR_VERSION} at most."
        )
    _forget_names(converted.graph, {dim.dim_param for value in interface for dim in _dimensions(value)})
    for node in converted.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    converted.producer_name = "edgekiln"
    onnx.helper.set_model_props(converted, {p.key: p.value for p in original.metadata_props})
    onnx.checker.check_model(converted, full_check=True)
    data: bytes = converted.SerializeToString(deterministic=True)
    return data


def _forget_names(graph: Any, known: set[str]) -> None:
    """AutoCast calls every size that it does not know ``unk``, and onnxruntime takes what has one name for one size."""
    for value in graph.value_info:
        for dim in _dimensions(value):
            if dim.dim_param not in known:
                dim.ClearField("dim_param")


def _dimensions(value: Any) -> Any:
    return value.type.tensor_type.shape.dim
