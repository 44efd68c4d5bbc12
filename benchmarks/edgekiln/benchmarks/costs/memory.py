"""Memory of one contender: the peak of a fresh process that loads it and runs it once, and what it takes of a GPU.

The peak is VmHWM of /proc/self/status. ``ru_maxrss`` would not do: Linux keeps it across exec, so that a child
forked from a large process reports its parent's memory as its own, while VmHWM belongs to the new program alone.

Run as a module, this is the fresh process: one request in, one answer out, each a line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.runtime.errors import EdgekilnError, EngineError
from edgekiln.runtime.processes import child_environment, module_command
from edgekiln.runtime.spec import Frames

__all__ = ["MemoryUse", "measure_memory", "read_peak_rss_mb"]

_TIMEOUT_SECONDS = 600.0  # a first run may compile kernels
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Megabytes of 1e6 bytes; ``None`` where the system does not tell.

    Attributes:
        peak_rss_mb: resident memory at its peak: interpreter, numpy, engine library, weights and one run.
        start_rss_mb: the same before the engine library was loaded: what Python and numpy take.
        device_mb: device memory that loading and one run took, the CUDA context left out; ``None`` without a GPU.
    """

    peak_rss_mb: float | None
    start_rss_mb: float | None
    device_mb: float | None


def measure_memory(
    factory: str, arguments: Mapping[str, Any], frames_file: Path, *, on_gpu: bool = False
) -> MemoryUse:
    """Load and run once in a fresh process.

    Args:
        factory: ``module:function`` that opens a Session, as a Contender names it.
        arguments: its keyword arguments, JSON values.
        frames_file: file of ``inputs.save_inputs``, or ``.npy`` of uint8 (N, H, W, 3); the first is run.
        on_gpu: measure device memory too. It is read device-wide, so nothing else may use the GPU meanwhile.

    Raises:
        EngineError: the process failed, and the last line that it said is in the message; or it did not end in time.
    """
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder:
        # All frames would count as memory of the engine: the child is given a file that holds one alone.
        frame_file = Path(folder) / "frame.npy"
        np.save(frame_file, _first_frame(frames_file))
        request = {
            "factory": factory, "arguments": dict(arguments), "frame": str(frame_file), "on_gpu": on_gpu,
        }  # fmt: skip
        done = _run_child(json.dumps(request))
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise EngineError(f"The process that measures memory ended with {done.returncode}: {said[0]}")
    return MemoryUse(**json.loads(done.stdout.splitlines()[-1]))


def _run_child(request: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            module_command("edgekiln.benchmarks.costs.memory"),
            env=child_environment(),
            input=request,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,  # what it said goes into the message
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"The process that measures memory did not end within {_TIMEOUT_SECONDS:g} s and was killed."
        ) from error


def read_peak_rss_mb(status: Path = _STATUS) -> float | None:
    """Peak resident memory of this program in MB, from VmHWM; ``None`` where there is no /proc."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kib is None else int(kib) * 1024 / 1e6


def _free_device_bytes() -> int | None:
    """Through the driver itself, which starts nothing that the engine would not start."""
    from edgekiln.runtime.cuda.driver import free_memory

    try:
        return free_memory()
    except EdgekilnError:
        return None


def _first_frame(inputs: Path) -> Frames:
    """uint8 (1, H, W, 3) of ``inputs.save_inputs``' file, or of a plain ``.npy``."""
    loaded = np.load(inputs, mmap_mode="r", allow_pickle=False)
    frames: Frames = loaded["frames"] if inputs.suffix == ".npz" else loaded
    return np.ascontiguousarray(frames[:1])


def _measure_here(request: Mapping[str, Any]) -> dict[str, Any]:
    frame: Frames = np.load(request["frame"], allow_pickle=False)
    start = read_peak_rss_mb()
    before = _free_device_bytes() if request["on_gpu"] else None
    module, _, name = request["factory"].partition(":")
    session = getattr(importlib.import_module(module), name)(**request["arguments"])
    session.run(frame)
    after = None if before is None else _free_device_bytes()
    taken = None if before is None or after is None else (before - after) / 1e6
    peak = read_peak_rss_mb()
    session.close()
    return {"peak_rss_mb": peak, "start_rss_mb": start, "device_mb": taken}


def main() -> None:
    """Entry point: ``python -m edgekiln.benchmarks.costs.memory``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr
    print(json.dumps(_measure_here(json.load(sys.stdin))), file=answers, flush=True)


if __name__ == "__main__":
    main()
