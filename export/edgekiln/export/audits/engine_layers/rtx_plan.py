"""Reads the graph text inside a TensorRT-RTX plan: what each kernel takes and gives. Judges nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from edgekiln.export.audits.engine_layers.datatypes import normalize_datatype
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.origins import origins_of_metadata

__all__ = ["RtxEvidence", "parse_rtx_plan"]

_TEXT_START = b"header {\n"
_TEXT_LIMIT = 1 << 26  # bytes of one graph's text; real ones are some 100 bytes per kernel and tensor
_KERNEL_LINE = re.compile(r"^\s*(\w+)=\{ name=(\"[^\"]*\"|\S+)")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_QUOTED = re.compile(r'"([^"]*)"')


@dataclass(frozen=True, slots=True)
class RtxEvidence:
    """What the graph text in a TensorRT-RTX plan says.

    Attributes:
        kernels: every kernel of every graph in the plan; a plan has several where shapes are dynamic, and for each of
            its optimization profiles. Names of the second profile's tensors end with ``[profile 1]``.
        tf32: whether FP32 products may run in TF32.
    """

    kernels: tuple[EngineLayer, ...]
    tf32: bool


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
            _tensor(line) for line in lines if line.lstrip().startswith(("tensor={", "sub_tensor={"))
        )
        mark = _PROFILE.search(text)
        profile = int(mark[1]) if mark else 0
        kernels.extend(kernel for kernel in (_kernel(line, types, profile) for line in lines) if kernel)
    return RtxEvidence(tuple(kernels), tf32) if kernels else None


def _graph_texts(plan: bytes) -> Iterator[str]:
    """Each graph text. It ends where its bytes stop being text; no byte is looked at twice."""
    position = plan.find(_TEXT_START)
    while position >= 0:
        end = plan.find(b"\0", position, position + _TEXT_LIMIT)
        end = min(len(plan), position + _TEXT_LIMIT) if end < 0 else end
        yield plan[position:end].decode("utf-8", "replace")
        position = plan.find(_TEXT_START, end)


def _tensor(line: str) -> tuple[str, str]:
    """A tensor's name and datatype."""
    return _between(line, ' name="', '"'), normalize_datatype(_between(line, " type=", " "))


def _kernel(line: str, types: Mapping[str, str], profile: int) -> EngineLayer | None:
    """A kernel's line, or ``None`` for any other."""
    match = _KERNEL_LINE.match(line)
    if not match or match[1] in {"tensor", "sub_tensor", "region"}:
        return None
    inputs, outputs = (_operands(line, keys) for keys in (("input", "input_args"), ("output", "output_args")))
    return EngineLayer(
        match[2].strip('"'),
        match[1],
        origins_of_metadata(_between(line, ' layers="', '"')),
        tuple(types.get(name, "unknown") for name in inputs),
        tuple(types.get(name, "unknown") for name in outputs),
        None,
        profile=profile,
    )


def _operands(line: str, keys: Iterable[str]) -> list[str]:
    return [name for key in keys for name in _QUOTED.findall(_between(line, f" {key}={{", "}"))]


def _between(line: str, start: str, end: str) -> str:
    """What stands between two marks; empty where either is absent."""
    _, found, rest = line.partition(start)
    inside, closed, _ = rest.partition(end)
    return inside if found and closed else ""
