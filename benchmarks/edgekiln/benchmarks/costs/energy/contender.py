"""Energy per image of one contender, measured in a fresh process: ``python -m edgekiln.benchmarks.costs.energy``.

This is the side that asks: one request in, one answer out, each a line of JSON. ``__main__`` answers.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from edgekiln.benchmarks.costs.energy.per_image import EnergyPerImage
from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.processes import child_environment, module_command

__all__ = ["measure_contender"]

_CONTENDER_SECONDS = 3.0  # idle, and again busy: the slowest source then gives six readings of each
_TIMEOUT_SECONDS = 600.0  # a first run may compile kernels


def measure_contender(
    factory: str,
    arguments: Mapping[str, Any],
    frames_file: Path,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    seconds: float = _CONTENDER_SECONDS,
    places: Mapping[str, str] | None = None,
) -> EnergyPerImage:
    """Energy of one ``Session.run`` at batch 1 over rotating frames, in a fresh process.

    Args:
        factory: ``module:function`` that opens a Session, as a Contender names it.
        arguments: its keyword arguments, JSON values.
        frames_file: file of ``inputs.save_inputs``.
        device: where it runs; on ``cuda`` the first GPU of the driver.
        seconds: idle, and again busy.
        places: ``hwmon``, ``powercap`` and ``tegrastats`` of ``open_meter``, where they are not the system's own.

    Raises:
        EngineError: the process failed, or the source went away; the last line that it said is in the message.
    """
    request = {
        "factory": factory, "arguments": dict(arguments), "frames": str(frames_file), "device": device,
        "seconds": seconds, "places": dict(places or {}),
    }  # fmt: skip
    environment = child_environment(without=["OMP_WAIT_POLICY"])
    try:
        done = subprocess.run(
            module_command("edgekiln.benchmarks.costs.energy"),
            input=json.dumps(request), capture_output=True, text=True, check=True, env=environment,
            timeout=_TIMEOUT_SECONDS,
        )  # fmt: skip
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or "").strip().splitlines() or [str(error)]
        raise EngineError(f"The process that measures energy failed: {said[-1]}") from error
    return EnergyPerImage(**json.loads(done.stdout.splitlines()[-1]))
