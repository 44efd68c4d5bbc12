"""Who takes part in a measurement: PyTorch's ways, and edgekiln's backends with their files. Times nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekiln.pipeline.gpu_suite.engines import EngineFile
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart
from edgekiln.pipeline.gpu_suite.machine import is_installed
from edgekiln.pipeline.gpu_suite.networks import MODELS, find_file, make_network, onnx_name
from edgekiln.pipeline.gpu_suite.timing import Caller, Contender
from edgekiln.runtime.backends import Backend, open_session
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames

__all__ = [
    "BASELINE",
    "COMPILED",
    "GRAPHED",
    "SessionCaller",
    "explain_no_torch",
    "list_contenders",
    "list_sessions",
]

BASELINE = "pytorch-eager-fp32-strict"
GRAPHED = "pytorch-cuda-graph-fp16"
COMPILED = "pytorch-compile-fp16"


class SessionCaller:
    """One of edgekiln's own sessions."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.run = session.run

    def begin(self) -> None:
        """Nothing of it is global."""

    def device_ms(self, frames: Frames, calls: int) -> list[float] | None:
        """See ``Caller``."""
        measure = getattr(self.session, "measure_device_ms", None)
        return None if measure is None else list(measure(frames, calls))

    def close(self) -> None:
        """See ``Caller``."""
        self.session.close()


def explain_no_torch(device: str) -> str | None:
    """Why PyTorch cannot be measured on ``device``; ``None`` where it can."""
    if not is_installed("torch"):
        return "torch is not installed"
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    return None


def list_contenders(arguments: Mapping[str, Any]) -> list[Contender]:
    """The baseline first, then PyTorch's other ways, then edgekiln's backends."""
    torch_ones = _torch_contenders(arguments)
    wanted = [torch_ones[0]]  # without it there is no ratio to anything
    wanted += [c for c in torch_ones[1:] if "torch" in arguments["families"] or c.name == GRAPHED]
    return wanted + list_sessions(arguments)


def _torch_contenders(arguments: Mapping[str, Any]) -> list[Contender]:
    device, mode = arguments["device"], arguments.get("compile_mode", "default")
    ways: list[tuple[str, dict[str, Any]]] = [
        (BASELINE, {"dtype": "float32", "tf32": False}),
        ("pytorch-eager-tf32", {"dtype": "float32", "tf32": True}),
        ("pytorch-channels-last-fp16", {"dtype": "float16", "channels_last": True, "search": True}),
        (COMPILED, {"dtype": "float16", "channels_last": True, "search": True, "compile_mode": mode}),
        (GRAPHED, {"dtype": "float16", "channels_last": True, "search": True, "graph": True}),
    ]
    if device != "cuda":
        ways = ways[:3]  # the others are about launches on a GPU
    return [Contender(name, "torch", config, _torch_opener(arguments, config)) for name, config in ways]


def _torch_opener(arguments: Mapping[str, Any], config: Mapping[str, Any]) -> Callable[[], Caller]:
    model, batch, device = arguments["model"], arguments["batch"], arguments["device"]

    def open_torch() -> Caller:
        unfit = explain_no_torch(device)
        if unfit is not None:
            raise SkippedPart(unfit)
        import torch

        from edgekiln.pipeline.proof.torch_callers import (
            GraphCaller,
            PixelNetwork,
            TorchCaller,
            compile_network,
        )

        if "compile_mode" in config:
            _require_compiler()
        dtype, size = getattr(torch, config["dtype"]), MODELS[model].size
        channels_last = config.get("channels_last", False)
        plain = make_network(model, arguments["folders"])
        network = PixelNetwork(plain, dtype, channels_last=channels_last).eval().to(device)
        if config.get("graph"):
            return GraphCaller(network, (batch, size, size))
        module = compile_network(network, config["compile_mode"]) if "compile_mode" in config else network
        tf32, search = config.get("tf32", False), config.get("search", False)
        return TorchCaller(module, (batch, size, size), device=device, tf32=tf32, search=search)

    return open_torch


def _require_compiler() -> None:
    if not is_installed("triton"):
        raise SkippedPart("triton, which torch.compile generates for, is not installed")
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang")):
        raise SkippedPart("there is no C compiler, which triton needs")


def list_sessions(arguments: Mapping[str, Any]) -> list[Contender]:
    """Edgekiln's backends with a file of this model and batch size, of the families that are wanted."""
    model, batch, device = arguments["model"], arguments["batch"], arguments["device"]
    files: dict[tuple[str, str], tuple[str, str]] = {
        (f"onnxruntime-{device}", p): (onnx_name(model, p), f"graphs.{model}") for p in ("fp32", "fp16")
    }  # file and the part that makes it
    for flavour, precisions in _ENGINES:
        for precision in precisions:
            name = EngineFile(model, precision, batch, flavour).name
            files[(flavour, precision)] = (name, f"engines.{flavour}.{model}")
    contenders = [
        Contender(
            f"{backend}-{precision}",
            backend.removesuffix(f"-{device}"),
            {"file": name, "precision": precision},
            _session_opener(backend, name, part, arguments["folders"]),
        )
        for (backend, precision), (name, part) in files.items()
    ]
    return [contender for contender in contenders if contender.family in arguments["families"]]


_ENGINES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    ("tensorrt", ("fp32", "fp16", "int8")),
    ("tensorrt-rtx", ("fp16", "int8")),
)


def _session_opener(
    backend: Any, name: str, part: str, folders: Sequence[str | None]
) -> Callable[[], Caller]:
    def open_it() -> Caller:
        path = find_file(name, folders)
        if path is None:
            raise SkippedPart(f"there is no {name}; part {part!r} says why")
        chosen: Backend = backend
        return SessionCaller(open_session(chosen, path.read_bytes()))

    return open_it
