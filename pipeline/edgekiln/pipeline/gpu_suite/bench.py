"""One model at one batch size: opens every contender, checks its answers, and times those that answer rightly."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekiln.pipeline.gpu_suite.engines import EngineFile, find_file
from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, Tell
from edgekiln.pipeline.gpu_suite.machine import is_installed, query_smi
from edgekiln.pipeline.gpu_suite.models import MODELS, make_frames, make_network, onnx_name
from edgekiln.pipeline.gpu_suite.reference import MAX_DIFFERENCE, compare_answers, reference_logits
from edgekiln.pipeline.gpu_suite.timing import (
    Caller,
    Contender,
    TimingPlan,
    measure_load,
    summarize,
    time_in_turns,
)
from edgekiln.runtime.backends import Backend, open_session
from edgekiln.runtime.errors import EnvironmentProblem, UsageError
from edgekiln.runtime.session import Session
from edgekiln.runtime.spec import Frames, Logits

__all__ = ["BASELINE", "BOUNDARY", "COMPILED", "GRAPHED", "bench", "list_contenders"]

BASELINE = "pytorch-eager-fp32-strict"
GRAPHED = "pytorch-cuda-graph-fp16"
COMPILED = "pytorch-compile-fp16"
BOUNDARY = (
    "call: from uint8 (N, H, W, 3) in host memory to float32 logits in host memory; both copies and the wait for "
    "the GPU included"
)
_POOL = 32
_BATCHES = 16


class SessionCaller:
    """One of edgekiln's own sessions."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.run = session.run

    def begin(self) -> None:
        """Nothing of it is global."""

    def device_ms(self, frames: Frames, calls: int) -> list[float] | None:
        """See ``Caller``."""
        measure = getattr(self._session, "measure_device_ms", None)
        return None if measure is None else list(measure(frames, calls))

    def close(self) -> None:
        """See ``Caller``."""
        self._session.close()


# --------------------------------------------------------------------------------------------------------------
# Who takes part


def list_contenders(arguments: Mapping[str, Any]) -> list[Contender]:
    """The baseline first, then PyTorch's other ways, then edgekiln's backends."""
    torch_ones = _torch_contenders(arguments)
    wanted = [torch_ones[0]]  # without it there is no ratio to anything
    wanted += [c for c in torch_ones[1:] if "torch" in arguments["families"] or c.name == GRAPHED]
    wanted += [c for c in _session_contenders(arguments) if c.family in arguments["families"]]
    return wanted


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
    return [
        Contender(
            name, "torch", config, _torch_opener(arguments["model"], arguments["batch"], device, config)
        )
        for name, config in ways
    ]


def _torch_opener(model: str, batch: int, device: str, config: Mapping[str, Any]) -> Callable[[], Caller]:
    def open_torch() -> Caller:
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
        network = PixelNetwork(make_network(model), dtype, channels_last=channels_last).eval().to(device)
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


def _session_contenders(arguments: Mapping[str, Any]) -> list[Contender]:
    model, batch, device = arguments["model"], arguments["batch"], arguments["device"]
    files = {
        (f"onnxruntime-{device}", p): (onnx_name(model, p), "models") for p in ("fp32", "fp16")
    }  # file and the part that makes it
    files |= {
        ("tensorrt", p): (EngineFile(model, p, batch, "tensorrt").name, "engines.tensorrt")
        for p in ("fp32", "fp16")
    }
    rtx = EngineFile(model, "fp16", batch, "tensorrt-rtx").name
    files[("tensorrt-rtx", "fp16")] = (rtx, "engines.tensorrt-rtx")
    return [
        Contender(
            f"{backend}-{precision}",
            backend.removesuffix(f"-{device}"),
            {"file": name, "precision": precision},
            _session_opener(backend, name, part, arguments),
        )
        for (backend, precision), (name, part) in files.items()
    ]


def _session_opener(backend: Any, name: str, part: str, arguments: Mapping[str, Any]) -> Callable[[], Caller]:
    def open_it() -> Caller:
        path = find_file(name, arguments["folders"])
        if path is None:
            raise SkippedPart(f"there is no {name}; part {part!r} says why")
        chosen: Backend = backend
        return SessionCaller(open_session(chosen, path.read_bytes()))

    return open_it


# --------------------------------------------------------------------------------------------------------------
# The measurement


def bench(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Open, check and time all contenders of one model at one batch size.

    Args:
        arguments: ``model``, ``batch``, ``device`` (``cuda``; ``cpu`` is for tests), ``folders`` of files,
            ``families`` of contenders, ``exclude`` (reasons by name: known to crash), ``rounds``,
            ``block_seconds`` and ``compile_mode``.
        tell: told which contender is being opened or timed, so that a crash is known by its contender.

    Raises:
        SkippedPart: PyTorch or its GPU is not here: there is no baseline.
    """
    _require_torch(arguments["device"])
    model, batch = arguments["model"], arguments["batch"]
    pool = make_frames(_POOL, MODELS[model].size)
    right = reference_logits(model, pool)
    entries: dict[str, dict[str, Any]] = {}
    callers: dict[str, Caller] = {}
    for contender in list_contenders(arguments):
        name = contender.name
        entries[name] = {"family": contender.family, "config": dict(contender.config)}
        if name in arguments["exclude"]:
            entries[name] |= arguments["exclude"][name]
            continue
        tell({"contender": name, "doing": "open"})
        entry, caller = _open(contender, pool, right, batch)
        entries[name] |= entry
        if caller is not None:
            callers[name] = caller
    if BASELINE not in callers:
        reason = entries[BASELINE]["reason"]
        raise RuntimeError(f"the baseline cannot be measured, so nothing can be compared with it: {reason}")
    return _measure(arguments, entries, callers, pool, tell)


def _require_torch(device: str) -> None:
    if not is_installed("torch"):
        raise SkippedPart("torch is not installed: there is no baseline")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SkippedPart(f"torch {torch.__version__} finds no GPU: there is no baseline")


def _open(
    contender: Contender, pool: Frames, right: Logits, batch: int
) -> tuple[dict[str, Any], Caller | None]:
    """What is known of a contender before it is timed, and the contender where it answers rightly."""
    from edgekiln.pipeline.proof.torch_callers import time_opening

    try:
        caller, seconds = time_opening(contender.open)
        caller.begin()
        got = np.concatenate([caller.run(frames)[: len(pool) - i] for i, frames in _whole_pool(pool, batch)])
    except (SkippedPart, EnvironmentProblem, UsageError) as error:
        return {"state": "skipped", "reason": str(error)}, None
    except Exception as error:  # libraries raise anything; the other contenders go on
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]}, None
    agreement = compare_answers(got, right)
    entry = {"seconds_to_open": seconds, "answers": agreement.to_dict()}
    if not agreement.right:
        caller.close()
        told = f"a logit differs by {agreement.max_difference:.3g} of the logits' range, allowed {MAX_DIFFERENCE}"
        return {**entry, "state": "failed", "reason": f"it answers wrongly, so it is not timed: {told}"}, None
    return {**entry, "state": "done", "reason": None}, caller


def _whole_pool(pool: Frames, batch: int) -> list[tuple[int, Frames]]:
    """Batches that hold each picture once, in order; the last one is filled up from the beginning."""
    indices = np.arange(len(pool))
    return [(i, pool[np.arange(i, i + batch) % len(pool)]) for i in indices[::batch]]


def _measure(
    arguments: Mapping[str, Any],
    entries: dict[str, dict[str, Any]],
    callers: Mapping[str, Caller],
    pool: Frames,
    tell: Tell,
) -> dict[str, Any]:
    batch = arguments["batch"]
    batches = [pool[(np.arange(batch) + 2 * i) % len(pool)] for i in range(_BATCHES)]
    plan = TimingPlan(arguments["rounds"], arguments["block_seconds"])
    under_load: list[dict[str, Any]] = []
    read_load = measure_load()
    measured = time_in_turns(
        callers,
        batches,
        plan,
        tell=lambda name, index: tell({"contender": name, "doing": f"round {index + 1} of {plan.rounds}"}),
        midway=lambda: under_load.append(query_smi()),
    )
    foreign, steal = read_load()
    summary = summarize(measured, (BASELINE, GRAPHED), foreign_load=foreign, steal=steal)
    for name, figures in summary["contenders"].items():
        entries[name] |= figures
    return {
        "model": arguments["model"],
        "batch": batch,
        "size_px": MODELS[arguments["model"]].size,
        "boundary": BOUNDARY,
        "baseline": BASELINE,
        "inputs": f"{_BATCHES} batches of {_POOL} distinct pictures, in rotation",
        "rounds": plan.rounds,
        "block_seconds": plan.block_seconds,
        "foreign_load_cores": foreign,
        "steal_share": steal,
        "libraries": _torch_libraries(),
        "nvidia_smi_midway": under_load[0] if under_load else None,
        "validity": summary["validity"],
        "contenders": entries,
        "fastest_edgekiln": _fastest(entries),
    }


def _torch_libraries() -> dict[str, Any]:
    import torch

    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call] # torch's own
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


def _fastest(entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The fastest of edgekiln's own backends, by the median call."""
    ours: Sequence[tuple[float, str]] = [
        (entry["p50_ms"], name)
        for name, entry in entries.items()
        if entry["family"] != "torch" and entry["state"] == "done"
    ]
    return min(ours)[1] if ours else None
