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

from edgekiln.export.onnx import MAX_IR_VERSION
from edgekiln.runtime.errors import MissingExtraError, PrecisionError
from edgekiln.runtime.extras import import_extra

__all__ = ["finish_model", "import_modelopt", "quiet_modelopt"]

MAX_OPSET = 20
"""The newest that TensorRT 10.3's parser documents (JetPack 6)."""


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


def finish_model(converted: Any, original: Any) -> bytes:
    """A converted model as edgekiln keeps its files: the contract in it, the same interface, checked.

    Args:
        converted: ModelProto that modelopt gave.
        original: ModelProto that it was made from.

    Raises:
        PrecisionError: an input or output changed its name, type or shape, or the file is too new for TensorRT 10.3.
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
    if opsets.get("", 99) > MAX_OPSET or converted.ir_version > MAX_IR_VERSION:
        raise PrecisionError(
            f"The conversion wrote opset {opsets} and IR {converted.ir_version}; TensorRT 10.3 reads opset "
            f"{MAX_OPSET} and IR {MAX_IR_VERSION} at most."
        )
    for node in converted.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    converted.producer_name = "edgekiln"
    onnx.helper.set_model_props(converted, {p.key: p.value for p in original.metadata_props})
    onnx.checker.check_model(converted, full_check=True)
    data: bytes = converted.SerializeToString(deterministic=True)
    return data
