"""What the runtime itself costs a product: import, cold start, overhead per call, memory.

Everything that is a cold start is measured in fresh processes; the overhead per call is a difference of two ways
to run the same engine in one process, taken in turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load
from edgekiln.runtime.bundle import load, open_bundle
from edgekiln.runtime.contract import Contract

__all__ = ["measure_runtime_cost"]

_PROCESSES = 7
_ROUNDS, _CALLS = 40, 50

_IMPORT = "import time; t = time.perf_counter(); import edgekiln.runtime; print(time.perf_counter() - t)"
_FIRST = """
import sys, resource
import edgekiln.runtime as runtime
with runtime.load(sys.argv[1]) as classifier:
    classifier.predict(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure_runtime_cost(bundle: Path) -> dict[str, Any]:
    """Measure with a bundle's preferred CPU engine; JSON values, units in the keys.

    Medians of 7 fresh processes, with their smallest and largest; the overhead is the median over 40 turns of
    50 calls each, batch 1, with the interquartile range.
    """
    contract = open_bundle(bundle).contract
    foreign = measure_foreign_load()
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as folder:
        picture = _write_picture(Path(folder), contract)
        imports = [1000 * float(_python(_IMPORT)) for _ in range(_PROCESSES)]
        starts, memory = [], []
        for _ in range(_PROCESSES):
            begin = perf_counter_ns()
            memory.append(float(_python(_FIRST, str(bundle), str(picture))))
            starts.append((perf_counter_ns() - begin) / 1e6)
    overhead, variant = _measure_overhead(bundle)
    machine = describe_machine()
    return {
        "variant": variant,
        "import_ms": _spread(imports),
        "start_to_first_prediction_ms": _spread(starts),
        "peak_rss_mb": _spread(memory),
        "session_run_overhead_us": overhead,
        "foreign_load_cores": round(foreign, 2),
        "cpu": f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
    }


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f}, n = {len(values)})"


def _write_picture(folder: Path, contract: Contract) -> Path:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (contract.height, contract.width, 3), np.uint8)
    path = folder / "picture.jpg"
    Image.fromarray(pixels).save(path)
    return path


def _measure_overhead(bundle: Path) -> tuple[str, str]:
    """Session.run against the bare library call, in microseconds per call."""
    with load(bundle, device="cpu", threads=1) as classifier:
        session: Any = classifier.session
        bare = session._session  # the library's own object: what a user without edgekiln would call
        height, width = session.frame_shape
        frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        names, feed = [bare.get_outputs()[0].name], {bare.get_inputs()[0].name: frame}
        differences = []
        for turn in range(_ROUNDS):
            first = _time(lambda: bare.run(names, feed))
            second = _time(lambda: session.run(frame))
            third = _time(lambda: bare.run(names, feed))
            if turn:  # the first turn warms up
                differences.append((second - (first + third) / 2) / 1000)
        low, middle, high = np.percentile(differences, [25, 50, 75])
        return (
            f"{middle:.1f} (quartiles {low:.1f} to {high:.1f}, n = {len(differences)})",
            classifier.variant.name,
        )


def _time(call: Any) -> float:
    """Median nanoseconds of one call."""
    times = []
    for _ in range(_CALLS):
        start = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - start)
    return statistics.median(times)
