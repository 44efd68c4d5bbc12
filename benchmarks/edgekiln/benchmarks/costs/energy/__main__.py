"""The process that measures one contender's energy: a request on stdin, an answer on stdout, each a line of JSON.

``contender.measure_contender`` writes the request and reads the answer.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.costs.energy.per_image import EnergyPerImage, measure_energy
from edgekiln.benchmarks.costs.energy.sources import HWMON, POWERCAP, find_gpu_uuid, open_meter
from edgekiln.runtime.errors import EngineError

_SETTLE_SECONDS = 1.0  # threads that wait for work spin for some tenths of a second, which is not idle


def _measure_here(request: Mapping[str, Any]) -> EnergyPerImage:
    with np.load(request["frames"], allow_pickle=False) as inputs:
        frames = itertools.cycle([np.ascontiguousarray(frame[None]) for frame in inputs["frames"]])
    module, _, name = request["factory"].partition(":")
    session = getattr(importlib.import_module(module), name)(**request["arguments"])
    uuid = find_gpu_uuid() if request["device"] == "cuda" else None
    places = request["places"]
    meter, reason = open_meter(
        request["device"],
        gpu_uuid=uuid,
        hwmon=Path(places.get("hwmon", HWMON)),
        powercap=Path(places.get("powercap", POWERCAP)),
        tegrastats=places.get("tegrastats", "tegrastats"),
    )
    if meter is None:
        raise EngineError(reason)
    with contextlib.closing(session), contextlib.closing(meter):
        return measure_energy(
            lambda: session.run(next(frames)), request["seconds"], meter, settle_seconds=_SETTLE_SECONDS
        )


def main() -> None:
    """Entry point: ``python -m edgekiln.benchmarks.costs.energy``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr
    print(json.dumps(asdict(_measure_here(json.load(sys.stdin)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
